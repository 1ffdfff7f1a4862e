"""Numbers of real models: what their config.json says, and how slime's launch scripts describe the same model to Megatron."""

from __future__ import annotations

from typing import Any

_QWEN3: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

_GLM: dict[str, Any] = {
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 151329,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3-4B": {
        **_QWEN3,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_window_layers": 36,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "Qwen3-30B-A3B": {
        **_QWEN3,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
    },
    "GLM-4-9B-0414": {
        **_GLM,
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "attention_bias": True,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 151552,
    },
    "GLM-4.7-Flash": {
        **_GLM,
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "model_type": "glm4_moe_lite",
        "attention_bias": False,
        "eos_token_id": [154820, 154827, 154829],
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 20,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 47,
        "num_key_value_heads": 20,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 154820,
        "partial_rotary_factor": 1.0,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": 256,
        "vocab_size": 154880,
    },
    "Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    },
    "GLM-4.5": {
        **_GLM,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "attention_bias": True,
        "first_k_dense_replace": 3,
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 160,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 96,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 92,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 2.5,
        "topk_group": 1,
        "use_qk_norm": True,
        "vocab_size": 151552,
    },
    "DeepSeek-V3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "hidden_size": 7168,
        "initializer_range": 0.02,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": 129280,
    },
}
"""config.json of models, by name, as their public cards have it."""

_DENSE = (
    "--swiglu --use-rotary-position-embeddings --disable-bias-linear --normalization RMSNorm --group-query-attention "
)
_EXPERTS = "--moe-grouped-gemm --moe-permute-fusion --moe-router-dtype fp32 --moe-aux-loss-coeff 0 "
_SIGMOID = (
    "--moe-router-score-function sigmoid --moe-router-pre-softmax --moe-router-enable-expert-bias "
    "--moe-router-bias-update-rate 0 --moe-router-load-balancing-type seq_aux_loss "
)
_LATENT = "--multi-latent-attention --qk-layernorm --position-embedding-type rope --no-rope-fusion "

MODEL_ARGS: dict[str, list[str]] = {
    name: text.split()
    for name, text in {
        "Qwen3-4B": _DENSE + "--num-layers 36 --hidden-size 2560 --ffn-hidden-size 9728 --num-attention-heads 32 "
        "--num-query-groups 8 --norm-epsilon 1e-6 --rotary-base 1000000 --vocab-size 151936 --kv-channels 128 --qk-layernorm",
        "Qwen3-30B-A3B": _EXPERTS
        + "--disable-bias-linear --qk-layernorm --group-query-attention --num-attention-heads 32 "
        "--num-query-groups 4 --kv-channels 128 --num-layers 48 --hidden-size 2048 --ffn-hidden-size 6144 "
        "--normalization RMSNorm --position-embedding-type rope --norm-epsilon 1e-6 --rotary-percent 1.0 --swiglu "
        "--untie-embeddings-and-output-weights --vocab-size 151936 --rotary-base 1000000 --moe-ffn-hidden-size 768 "
        "--moe-router-score-function softmax --moe-token-dispatcher-type alltoall --moe-router-topk 8 --num-experts 128 "
        f"--moe-token-drop-policy probs --moe-layer-freq [{','.join(['1'] * 48)}]",
        "GLM-4-9B-0414": _DENSE + "--spec slime_plugins.models.glm4 get_glm_spec --num-layers 40 --hidden-size 4096 "
        "--ffn-hidden-size 13696 --num-attention-heads 32 --num-query-groups 2 --add-qkv-bias --norm-epsilon 1e-5 "
        "--rotary-base 10000 --vocab-size 151552 --post-self-attn-layernorm --post-mlp-layernorm --rotary-interleaved "
        "--rotary-percent 0.5 --no-rope-fusion --untie-embeddings-and-output-weights",
        "GLM-4.7-Flash": _EXPERTS + _SIGMOID + _LATENT + "--moe-layer-freq [0]*1+[1]*46 --num-experts 64 "
        "--moe-shared-expert-intermediate-size 1536 --moe-router-topk 4 --moe-ffn-hidden-size 1536 "
        "--moe-router-topk-scaling-factor 1.8 --make-vocab-size-divisible-by 64 --num-layers 47 --hidden-size 2048 "
        "--ffn-hidden-size 10240 --num-attention-heads 20 --disable-bias-linear --add-qkv-bias --swiglu "
        "--untie-embeddings-and-output-weights --no-position-embedding --normalization RMSNorm --q-lora-rank 768 "
        "--kv-lora-rank 512 --qk-head-dim 192 --v-head-dim 256 --kv-channels 192 --qk-pos-emb-head-dim 64 "
        "--vocab-size 154880 --rotary-base 1000000",
        "Qwen2.5-7B": _DENSE + "--num-layers 28 --hidden-size 3584 --ffn-hidden-size 18944 --num-attention-heads 28 "
        "--num-query-groups 4 --add-qkv-bias --norm-epsilon 1e-06 --rotary-base 1000000 --vocab-size 152064 "
        "--untie-embeddings-and-output-weights",
        "Llama-3.1-8B": _DENSE + "--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 "
        "--num-query-groups 8 --max-position-embeddings 131072 --norm-epsilon 1e-5 --rotary-base 500000 --vocab-size 128256 "
        "--kv-channels 128 --use-rope-scaling --rotary-scaling-factor 8.0 --untie-embeddings-and-output-weights",
        "GLM-4.5": _EXPERTS + _SIGMOID + "--disable-bias-linear --qk-layernorm --group-query-attention "
        "--num-attention-heads 96 --num-query-groups 8 --kv-channels 128 --num-layers 92 --hidden-size 5120 "
        "--ffn-hidden-size 12288 --add-qkv-bias --normalization RMSNorm --position-embedding-type rope --rotary-percent 0.5 "
        "--swiglu --untie-embeddings-and-output-weights --vocab-size 151552 --rotary-base 1000000 --moe-ffn-hidden-size 1536 "
        "--moe-shared-expert-intermediate-size 1536 --moe-token-dispatcher-type alltoall --moe-router-topk 8 "
        "--moe-router-topk-scaling-factor 2.5 --moe-layer-freq [0]*3+[1]*89 --num-experts 160",
        "DeepSeek-V3": _EXPERTS + _SIGMOID + _LATENT + "--disable-bias-linear --num-layers 61 --hidden-size 7168 "
        "--ffn-hidden-size 18432 --num-attention-heads 128 --kv-channels 128 --normalization RMSNorm --norm-epsilon 1e-6 "
        "--swiglu --untie-embeddings-and-output-weights --vocab-size 129280 --q-lora-rank 1536 --kv-lora-rank 512 "
        "--qk-head-dim 128 --qk-pos-emb-head-dim 64 --v-head-dim 128 --rotary-scaling-factor 40 --rotary-base 10000 "
        "--mscale 1.0 --mscale-all-dim 1.0 --attention-softmax-in-fp32 --num-experts 256 --moe-layer-freq [0]*3+[1]*58 "
        "--moe-ffn-hidden-size 2048 --moe-router-topk 8 --moe-shared-expert-intermediate-size 2048 "
        "--moe-token-dispatcher-type alltoall --moe-router-group-topk 4 --moe-router-num-groups 8 "
        "--moe-router-topk-scaling-factor 2.5",
    }.items()
}
"""The options that describe the same models in slime's launch scripts."""
