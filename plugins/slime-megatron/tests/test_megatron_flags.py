"""The options of the Megatron backend: those that describe a model are compared with the checkpoint, and none is ignored in
silence. Launch scripts of slime are taken as they are; `megatron_model_cards` has the models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from megatron_model_cards import CONFIGS, MODEL_ARGS

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.readers import without_effect
from slime_core.arguments.recipe import Stage
from slime_core.arguments.resolve import Resolved, resolve
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.plugins.discovery import PluginInfo, discover
from slime_megatron.arguments import MegatronArguments, MegatronComputeArguments, MegatronLayoutArguments
from slime_megatron.checkpoint_files import read_config
from slime_megatron.families import FAMILIES
from slime_megatron.model_flags import MegatronModelArguments, compare
from slime_megatron.refusals import remarks
from slime_megatron.spec import ConfigReader, ModelSpec

HERE = Path(__file__).parent
REQUIRED = ["--hf-checkpoint", "m", "--prompt-data", "d", "--rollout-batch-size", "8", "--num-rollout", "3"]
GROUPS = (MegatronLayoutArguments, MegatronComputeArguments, MegatronModelArguments)

PERF_ARGS = (
    "--tensor-model-parallel-size {tp} --sequence-parallel --pipeline-model-parallel-size {pp} --context-parallel-size {cp} "
    "--expert-model-parallel-size {ep} --expert-tensor-parallel-size 1 --recompute-granularity full --recompute-method uniform "
    "--recompute-num-layers 1 --use-dynamic-batch-size --max-tokens-per-gpu 9216 "
)
OPTIMIZER_ARGS = (
    "--optimizer adam --lr 1e-6 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 "
)
IN_HOST_MEMORY = "--optimizer-cpu-offload --overlap-cpu-optimizer-d2h-h2d --use-precision-aware-optimizer "
MISC_ARGS = (
    "--attention-dropout 0.0 --hidden-dropout 0.0 --accumulate-allreduce-grads-in-fp32 --attention-softmax-in-fp32 "
    "--attention-backend flash "
)
CKPT_ARGS = "--ref-load /r/torch_dist --load /r/slime/ --save /r/slime/ --save-interval 20 "
DEEPEP = "--moe-token-dispatcher-type flex --moe-enable-deepep "
MTP_ARGS = "--mtp-num-layers 1 --enable-mtp-training --mtp-loss-scaling-factor 0.2 "

SCRIPTS: dict[str, tuple[str, str]] = {
    "run-qwen3-4B": ("Qwen3-4B", PERF_ARGS.format(tp=2, pp=1, cp=1, ep=1) + OPTIMIZER_ARGS + MISC_ARGS + CKPT_ARGS),
    "run-qwen3-4B-base-sft": (
        "Qwen3-4B",
        PERF_ARGS.format(tp=1, pp=1, cp=1, ep=1)
        + OPTIMIZER_ARGS
        + "--lr-decay-style cosine --min-lr 1e-7 --lr-warmup-fraction 0.1 "
        + MISC_ARGS
        + CKPT_ARGS,
    ),
    "run-glm4-9B": ("GLM-4-9B-0414", PERF_ARGS.format(tp=2, pp=1, cp=2, ep=1) + OPTIMIZER_ARGS + MISC_ARGS + CKPT_ARGS),
    "run-qwen3-30B-A3B": (
        "Qwen3-30B-A3B",
        PERF_ARGS.format(tp=4, pp=1, cp=1, ep=8) + OPTIMIZER_ARGS + IN_HOST_MEMORY + MISC_ARGS + CKPT_ARGS,
    ),
    "run-glm4.7-30B-A3B": (
        "GLM-4.7-Flash",
        PERF_ARGS.format(tp=2, pp=2, cp=2, ep=8)
        + "--decoder-last-pipeline-num-layers 23 "
        + OPTIMIZER_ARGS
        + IN_HOST_MEMORY
        + MISC_ARGS
        + DEEPEP
        + MTP_ARGS
        + CKPT_ARGS,
    ),
}
"""{launch script: (its model, its blocks but MODEL_ARGS)}."""

REFUSED_IN_SCRIPTS = {
    "run-qwen3-30B-A3B": ["--use-precision-aware-optimizer"],
    "run-glm4.7-30B-A3B": ["--enable-mtp-training", "--use-precision-aware-optimizer"],
}


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    """Everything that is installed, and this distribution, whether it is or not."""
    others = [info for info in discover() if info.distribution != "slime-megatron"]
    return Plugins([*others, PluginInfo("megatron", "slime-megatron", "0.1.0", "slime_megatron.plugin")])


@pytest.fixture(scope="module")
def namespace(plugins: Plugins) -> Namespace:
    return Namespace(plugins)


@pytest.fixture
def compared(namespace: Namespace, tmp_path: Path) -> Any:
    """`compared("Qwen3-4B", "--rotary-base 7")` compares a command line with a model, and returns its `ModelSpec`."""

    def run(model: str, flags: str | list[str]) -> ModelSpec:
        args: Any = resolved(namespace, flags).args
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[model]))
        reader = ConfigReader(read_config(str(tmp_path)).to_dict(), model)
        spec = FAMILIES[reader.model_type](reader, lambda size: -(-size // 256) * 256)
        reader.require_all_read()
        compare(args, spec, f"--hf-checkpoint {model}", reader.model_type)
        return spec

    return run


def resolved(namespace: Namespace, flags: str | list[str], *further: str) -> Resolved:
    words = flags.split() if isinstance(flags, str) else flags
    return resolve(namespace, [*REQUIRED, "--train-backend", "megatron", *words, *further], None, {})


def notes(plugins: Plugins, found: Resolved) -> list[str]:
    """What `slime check` says about options without effect."""
    backend = plugins.select("train_backend", found.args.train_backend)
    return without_effect(found, [backend], plugins)


# ------------------------------------------------------------------------------------------------------- launch scripts


@pytest.mark.parametrize("model", MODEL_ARGS)
def test_the_options_that_describe_a_model_in_slimes_scripts_agree_with_its_checkpoint(
    model: str, compared: Any
) -> None:
    spec = compared(model, MODEL_ARGS[model])
    assert not spec.remarks or all(remark[0] != "-" or "no effect" in remark for remark in spec.remarks)


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_other_blocks_of_a_script_are_taken_and_what_is_refused_is_refused_by_name(
    script: str, namespace: Namespace, plugins: Plugins, compared: Any
) -> None:
    model, blocks = SCRIPTS[script]
    refused = REFUSED_IN_SCRIPTS.get(script, [])
    if refused:
        with pytest.raises(ArgumentError) as error:
            resolved(namespace, blocks)
        assert sorted(re.findall(r"^(--[\w-]+)", str(error.value), re.M)) == refused
    words = [word for word in blocks.split() if word not in refused]
    spec = compared(model, [*MODEL_ARGS[model], *words])
    found = resolved(namespace, words)
    own: Any = found.args
    told = " ".join([*spec.remarks, *remarks(own), *notes(plugins, found)])
    expected = {"--attention-backend"}
    expected |= {"--sequence-parallel"} if script == "run-qwen3-4B-base-sft" else set()
    expected |= {"--overlap-cpu-optimizer-d2h-h2d"} if "--optimizer-cpu-offload" in words else set()
    expected |= (
        {"--moe-token-dispatcher-type", "--mtp-loss-scaling-factor"} if "--moe-enable-deepep" in words else set()
    )
    assert expected <= set(re.findall(r"--[\w-]+", told))
    assert "no effect" in told


def test_a_later_option_wins_as_in_scripts_that_override_a_model(compared: Any) -> None:
    with pytest.raises(ArgumentError, match="--rotary-base is 10000, but --hf-checkpoint Qwen3-4B says 1000000"):
        compared("Qwen3-4B", [*MODEL_ARGS["Qwen3-4B"], "--rotary-base", "10000"])


# ------------------------------------------------------------------------------------------------------- contradictions

CONTRADICTIONS = [
    ("Qwen3-4B", "--num-layers 35", "35", "36"),
    ("Qwen3-4B", "--hidden-size 2048", "2048", "2560"),
    ("Qwen3-4B", "--ffn-hidden-size 9216", "9216", "9728"),
    ("Qwen3-4B", "--num-attention-heads 16", "16", "32"),
    ("Qwen3-4B", "--no-group-query-attention", "False", "True"),
    ("Qwen3-4B", "--num-query-groups 4", "4", "8"),
    ("Qwen3-4B", "--kv-channels 80", "80", "128"),
    ("Qwen3-4B", "--vocab-size 152064", "152064", "151936"),
    ("Qwen3-4B", "--no-qk-layernorm", "False", "True"),
    ("Qwen3-4B", "--add-qkv-bias", "True", "False"),
    ("Qwen3-4B", "--no-disable-bias-linear", "False", "True"),
    ("Qwen3-4B", "--no-swiglu", "False", "True"),
    ("Qwen3-4B", "--normalization LayerNorm", "LayerNorm", "RMSNorm"),
    ("Qwen3-4B", "--norm-epsilon 1e-5", "1e-05", "1e-06"),
    ("Qwen3-4B", "--post-mlp-layernorm", "True", "False"),
    ("Qwen3-4B", "--post-self-attn-layernorm", "True", "False"),
    ("Qwen3-4B", "--untie-embeddings-and-output-weights", "True", "False"),
    ("Qwen3-4B", "--position-embedding", "True", "False"),
    ("Qwen3-4B", "--position-embedding-type learned_absolute", "learned_absolute", "rope"),
    ("Qwen3-4B", "--no-use-rotary-position-embeddings", "False", "True"),
    ("Qwen3-4B", "--rotary-base 5000000", "5000000", "1000000"),
    ("Qwen3-4B", "--rotary-percent 0.5", "0.5", "1"),
    ("Qwen3-4B", "--rotary-interleaved", "True", "False"),
    ("Qwen3-4B", "--rotary-seq-len-interpolation-factor 2", "2", "nothing of the kind"),
    ("Qwen3-4B", "--use-rope-scaling", "True", "False"),
    ("Qwen3-4B", "--rotary-scaling-factor 4", "4", "1"),
    ("Qwen3-4B", "--multi-latent-attention", "True", "False"),
    ("Qwen3-4B", "--kv-lora-rank 512", "512", "nothing of the kind"),
    ("Qwen3-4B", "--num-experts 8", "8", "nothing of the kind"),
    ("Qwen3-4B", "--moe-layer-freq 1", "[1]*36", "nothing of the kind"),
    ("Qwen3-4B", "--mtp-num-layers 1", "1", "0"),
    ("Llama-3.1-8B", "--no-use-rope-scaling", "False", "True"),
    ("Llama-3.1-8B", "--rope-scaling-factor 32", "32", "8"),
    ("Llama-3.1-8B", "--rotary-scaling-factor 32", "32", "8"),
    ("Qwen3-30B-A3B", "--num-experts 64", "64", "128"),
    ("Qwen3-30B-A3B", "--moe-ffn-hidden-size 1536", "1536", "768"),
    ("Qwen3-30B-A3B", "--moe-router-topk 4", "4", "8"),
    ("Qwen3-30B-A3B", "--moe-router-score-function sigmoid", "sigmoid", "softmax"),
    ("Qwen3-30B-A3B", "--moe-router-pre-softmax", "True", "False"),
    ("Qwen3-30B-A3B", "--moe-layer-freq [0]*1+[1]*47", "[0]*1+[1]*47", "[1]*48"),
    ("Qwen3-30B-A3B", "--moe-layer-freq 2", "[1]*1+[0]*1+[1]*1+", "[1]*48"),
    ("Qwen3-30B-A3B", "--moe-router-enable-expert-bias", "True", "False"),
    ("Qwen3-30B-A3B", "--moe-router-dtype fp64", "fp64", "fp32"),
    ("Qwen3-30B-A3B", "--moe-shared-expert-intermediate-size 768", "768", "nothing of the kind"),
    ("GLM-4-9B-0414", "--rotary-percent 1.0", "1", "0.5"),
    ("GLM-4-9B-0414", "--no-rotary-interleaved", "False", "True"),
    ("GLM-4-9B-0414", "--no-add-qkv-bias", "False", "True"),
    ("GLM-4.7-Flash", "--q-lora-rank 1536", "1536", "768"),
    ("GLM-4.7-Flash", "--kv-lora-rank 256", "256", "512"),
    ("GLM-4.7-Flash", "--qk-head-dim 128", "128", "192"),
    ("GLM-4.7-Flash", "--qk-pos-emb-head-dim 32", "32", "64"),
    ("GLM-4.7-Flash", "--v-head-dim 128", "128", "256"),
    ("GLM-4.7-Flash", "--kv-channels 64", "64", "256"),
    ("GLM-4.7-Flash", "--moe-router-topk-scaling-factor 2.5", "2.5", "1.8"),
    ("GLM-4.7-Flash", "--rotary-scaling-factor 40", "40", "1"),
    ("GLM-4.7-Flash", "--moe-shared-expert-intermediate-size 3072", "3072", "1536"),
    ("GLM-4.7-Flash", "--mtp-num-layers 2", "2", "1"),
    ("DeepSeek-V3", "--moe-router-num-groups 4", "4", "8"),
    ("DeepSeek-V3", "--moe-router-group-topk 2", "2", "4"),
    ("DeepSeek-V3", "--mscale 0.707", "0.707", "1"),
    ("DeepSeek-V3", "--mscale-all-dim 0.707", "0.707", "1"),
]


@pytest.mark.parametrize(("model", "flag", "given", "known"), CONTRADICTIONS)
def test_a_contradiction_names_the_option_and_both_values(
    model: str, flag: str, given: str, known: str, compared: Any
) -> None:
    name = flag.split()[0]
    positive = name if name in MODEL_FLAGS else name.replace("--no-", "--")
    with pytest.raises(ArgumentError) as error:
        compared(model, flag)
    message = str(error.value)
    assert message.startswith(f"{positive} is {given}")
    assert f"but --hf-checkpoint {model} says {known}." in message


def test_all_contradictions_are_told_at_once(compared: Any) -> None:
    with pytest.raises(ArgumentError) as error:
        compared("Qwen3-4B", "--num-layers 1 --hidden-size 2 --rotary-base 3")
    assert [line.split()[0] for line in str(error.value).splitlines()] == [
        "--num-layers",
        "--hidden-size",
        "--rotary-base",
    ]


def test_layers_of_slime_must_be_those_of_the_checkpoints_family(compared: Any) -> None:
    with pytest.raises(ArgumentError, match="has the layers of glm4, but --hf-checkpoint Qwen3-4B says qwen3"):
        compared("Qwen3-4B", "--spec slime_plugins.models.glm4 get_glm_spec")
    with pytest.raises(ArgumentError, match=r"--spec my\.layers spec: layers follow from the family"):
        compared("Qwen3-4B", "--spec my.layers spec")


@pytest.mark.parametrize("given", ["[0]*3 + [1", "__import__('os')", "two", "0"])
def test_a_pattern_of_layers_that_is_none_is_refused_and_never_run(given: str, compared: Any) -> None:
    with pytest.raises(ArgumentError, match=r"--moe-layer-freq is .*, which is neither a number nor a list"):
        compared("Qwen3-30B-A3B", ["--moe-layer-freq", given])


def test_a_recipe_may_write_the_pattern_of_layers_as_a_list(namespace: Namespace) -> None:
    recipe = Stage("a recipe", {"train-backend": "megatron", "moe-layer-freq": [0, 1], "rope-fusion": False})
    args: Any = resolve(namespace, REQUIRED, recipe, {}).args
    assert args.moe_layer_freq == "[0, 1]"


# ----------------------------------------------------------------------------------------------------- refused, no effect

REFUSED = {
    "--num-layers-per-virtual-pipeline-stage 2": "virtual pipeline",
    "--transformer-impl transformer_engine": "Transformer Engine cannot be imported: it is not installed.",
    "--rope-fusion": "needs Transformer Engine",
    "--masked-softmax-fusion": "--no-masked-softmax-fusion",
    "--gradient-accumulation-fusion": "APEX",
    "--no-attention-softmax-in-fp32": "always computed in float32",
    "--attention-dropout 0.1": "without dropout",
    "--hidden-dropout 0.1": "without dropout",
    "--overlap-param-gather": "right after a step",
    "--no-accumulate-allreduce-grads-in-fp32": "always added up in float32",
    "--use-precision-aware-optimizer": "Transformer Engine",
    "--moe-token-dispatcher-type allgather": "different lengths",
    "--moe-router-load-balancing-type sinkhorn": "other experts",
    "--moe-aux-loss-coeff 0.001": "is not trained",
    "--moe-router-bias-update-rate 0.001": "would move in every step",
    "--moe-expert-capacity-factor 1.0": "no token is dropped",
    "--enable-mtp-training": "not trained here",
    "--recompute-granularity full": "needs --recompute-method and --recompute-num-layers",
    "--recompute-granularity selective --recompute-num-layers 1": "go with --recompute-granularity full",
    "--recompute-granularity selective --recompute-modules layernorm": "needs Transformer Engine",
    "--recompute-granularity selective --recompute-modules core_attn moe_act": "--moe-grouped-gemm",
    "--recompute-granularity full --recompute-method block --recompute-num-layers 1 --recompute-modules mlp": "selective",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_the_backend_cannot_do_is_refused_by_name_when_a_run_is_planned(flags: str, namespace: Namespace) -> None:
    with pytest.raises(ArgumentError) as error:
        resolved(namespace, flags)
    assert REFUSED[flags] in str(error.value)
    assert "--" + flags.split("--")[-1].split()[0] in str(error.value)


def test_sgd_whose_state_would_be_cut_over_ranks_is_refused_when_a_run_is_planned(namespace: Namespace) -> None:
    with pytest.raises(ArgumentError, match="--optimizer sgd needs --no-use-distributed-optimizer"):
        resolved(namespace, "--optimizer sgd")
    resolved(namespace, "--optimizer sgd --no-use-distributed-optimizer")


@pytest.mark.parametrize(
    "flags", [flags for flags in REFUSED if "dropout" not in flags]
)  # which the torch backend refuses too
def test_other_backends_are_told_that_such_options_have_no_effect(
    flags: str, namespace: Namespace, plugins: Plugins
) -> None:
    found = resolved(namespace, flags, "--train-backend", "torch")
    told = " ".join(notes(plugins, found))
    assert told.count("it is read by the train_backend 'megatron'") == flags.count("--")


def test_options_that_lack_what_gives_them_an_effect_are_reported_by_check(
    namespace: Namespace, plugins: Plugins
) -> None:
    idle = {
        "--recompute-method uniform": "recompute-granularity",
        "--recompute-num-layers 1": "recompute-granularity",
        "--recompute-modules mlp": "recompute-granularity",
        "--overlap-cpu-optimizer-d2h-h2d": "optimizer-cpu-offload",
        "--attention-backend flash": "transformer-impl",
        "--moe-grouped-gemm": "transformer-impl",
        "--moe-permute-fusion": "transformer-impl",
        "--moe-enable-deepep": "moe-token-dispatcher-type",
        "--moe-router-load-balancing-type seq_aux_loss": "moe-aux-loss-coeff",
        "--moe-token-drop-policy probs": "moe-expert-capacity-factor",
        "--mtp-loss-scaling-factor 0.2": "enable-mtp-training",
    }
    told = notes(plugins, resolved(namespace, " ".join(idle)))
    assert sorted(told) == sorted(
        f"{flags.split()[0]} has no effect without --{needed}." for flags, needed in idle.items()
    )


def test_options_without_effect_in_this_backend_or_this_model_are_told(namespace: Namespace, compared: Any) -> None:
    flags = "--sequence-parallel --decoder-first-pipeline-num-layers 3 --decoder-last-pipeline-num-layers 3 --transformer-impl local"
    flags += " --attention-backend fused --moe-grouped-gemm --moe-permute-fusion --no-check-for-nan-in-loss-and-grad"
    flags += " --overlap-cpu-optimizer-d2h-h2d --moe-token-dispatcher-type flex --moe-enable-deepep"
    args: Any = resolved(namespace, flags).args
    told = " ".join(remarks(args))
    for flag in re.findall(r"--[\w-]+", flags.replace("--transformer-impl", "")):
        assert flag in told
    latent = "--add-qkv-bias --group-query-attention --num-query-groups 20 --kv-channels 192 --moe-router-pre-softmax"
    latent += " --mscale 1.0 --mscale-all-dim 1.0 --seq-length 4096 --max-position-embeddings 9 --recompute-modules moe"
    told = " ".join(compared("GLM-4.7-Flash", latent).remarks)
    for flag in re.findall(r"--[\w-]+", latent.replace("--recompute-modules", "")):
        assert f"{flag} has no effect" in told
    dense = compared("Qwen3-4B", "--recompute-granularity selective --recompute-modules moe shared_experts").remarks
    assert [remark.split()[1] for remark in dense] == ["moe", "shared_experts"]
    with pytest.raises(ArgumentError, match="mla_up_proj needs a model with latent attention"):
        compared("Qwen3-4B", "--recompute-granularity selective --recompute-modules mla_up_proj")


def test_experts_are_repeated_where_there_are_experts_and_several_steps_on_what_was_sampled(
    namespace: Namespace, plugins: Plugins, compared: Any
) -> None:
    flag = "--use-routing-replay"
    with pytest.raises(ArgumentError, match="the model of --hf-checkpoint Qwen3-4B has none"):
        compared("Qwen3-4B", flag)
    assert not any(flag in remark for remark in compared("GLM-4.7-Flash", f"{flag} --num-steps-per-rollout 2").remarks)
    assert f"{flag} has no effect with one optimizer step" in " ".join(remarks(resolved(namespace, flag).args))
    with pytest.raises(ArgumentError, match="nothing was sampled"):
        resolved(namespace, f"{flag} --disable-compute-advantages-and-returns")
    told = notes(plugins, resolved(namespace, flag, "--train-backend", "torch"))
    assert told == [f"{flag} has no effect: it is read by the train_backend 'megatron', which this run does not use."]


def test_check_prints_what_has_no_effect_in_this_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from slime_core.cli import main
    from slime_core.testing import tiny_checkpoint

    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"input": [1, 2, 3]}\n')
    words = ["check", "--train-backend", "megatron", "--hf-checkpoint", str(tiny_checkpoint(tmp_path / "model"))]
    words += ["--prompt-data", str(tmp_path / "rows.jsonl"), "--rollout-batch-size", "1", "--num-rollout", "1"]
    words += ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--disable-compute-advantages-and-returns"]
    assert main([*words, "--debug-train-only", "--sequence-parallel"]) == 0
    told = "--sequence-parallel has no effect with --tensor-model-parallel-size 1."
    assert told in capsys.readouterr().out.partition("notes")[2]


MODEL_FLAGS = {"--" + name.replace("_", "-"): field for name, field in MegatronModelArguments.model_fields.items()}


@pytest.mark.parametrize("flag", MODEL_FLAGS)
def test_no_option_that_describes_a_model_is_ignored(
    flag: str, namespace: Namespace, plugins: Plugins, compared: Any
) -> None:
    """Each is given a value that fits no model: it is an error, or somebody is told that it has no effect."""
    annotation = str(MODEL_FLAGS[flag].annotation)
    values = ["--no" + flag[1:], flag] if "bool" in annotation else [f"{flag} 7", f"{flag} probs", f"{flag} [7]"]
    outcomes = []
    for model in ("Qwen3-4B", "GLM-4.7-Flash"):
        for words in values:
            try:
                told = [*compared(model, words).remarks, *notes(plugins, resolved(namespace, words))]
            except ArgumentError as error:
                told = [str(error)]
            outcomes.append(any(flag in sentence for sentence in told))
    # Of the two values of a flag, one may be right.
    assert any(outcomes) if "bool" in annotation else all(outcomes), outcomes


# --------------------------------------------------------------------------------------------------------- the guide


def test_the_guide_has_a_row_for_every_option() -> None:
    guide = next(path for path in (HERE.parent / "docs", HERE.parents[2] / "docs") if (path / "megatron.md").is_file())
    text = (guide / "megatron.md").read_text(encoding="utf-8").partition("## Every option")[2]
    blocks = {block.split("\n")[0]: re.findall(r"^\| `--([\w-]+)`", block, re.M) for block in text.split("### ")}
    rows = {row for block in blocks.values() for row in block}
    options = [name.replace("_", "-") for group in GROUPS for name in group.model_fields]
    assert set(options) <= rows
    assert sum(map(len, blocks.values())) == len(rows), "an option has two rows"


def test_the_groups_are_all_of_the_options() -> None:
    own = [name for group in GROUPS for name in group.model_fields]
    assert sorted(own) == sorted(MegatronArguments.model_fields)
