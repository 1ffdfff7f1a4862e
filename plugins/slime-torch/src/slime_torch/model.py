"""Loads a causal language model and proves, before training, that the packed computation is the model's own.

`load_model` reads a Hugging Face folder. `prepare` switches a model to packed attention, finds its head, and compares
log-probabilities of a packed row with what the untouched model gives for each sequence alone, one of which reaches as far as
the model can read. A model with attention, positions, state or logits that this backend does not know therefore cannot train
wrongly in silence: it is refused.
`add_value_head` makes a critic of a language model; `freeze` takes parameters out of training.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from slime_core.arguments.groups.training import TrainArguments
from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.data.checkpoint_folders import require_folder, require_hugging_face
from slime_core.data.image_processor import Processor
from slime_core.data.quantised_checkpoints import weight_files_if_any
from slime_core.data.vision import auto_model
from slime_core.errors import ArgumentError, CheckpointError, PluginError
from slime_core.remote_code import from_config, from_pretrained, load_configuration
from slime_core.sample import Sample
from slime_core.tensors.linear_cross_entropy import Head, token_log_probs
from slime_core.tensors.packed_rows import PackedRow, pack_samples
from slime_core.tensors.quantised_weights import in_high_precision, load_restored
from slime_core.tensors.rotary import per_sequence
from slime_core.token_arrays import token_ids
from slime_core.training.frozen import trained_names
from slime_torch.attention import PACKED, register
from slime_torch.vision import Vision, language_model, vision_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VALUE_HEAD = "value_head"


def load_model(
    folder: str,
    device: torch.device,
    option: str = "--hf-checkpoint",
    quantised: QuantisedCheckpoint | None = None,
) -> PreTrainedModel:
    """Load the causal language model in `folder`, its weights in float32.

    Args:
        option: that names the folder, for messages.
        quantised: the format of its weights, which are restored; None: they are not quantised.

    Raises:
        ArgumentError: there is no such folder, it holds no causal language model, or weights are missing.
    """
    check_checkpoint(folder, option)
    model: PreTrainedModel
    info: dict[str, Any]
    try:
        loaded: Any  # a pair, which the annotation of from_pretrained does not know
        if quantised is not None:
            loaded = load_restored(quantised, torch.float32)
        else:
            kind = auto_model(load_configuration(folder))
            loaded = from_pretrained(kind, folder, dtype=torch.float32, output_loading_info=True)
        model, info = loaded
    except (OSError, ValueError, KeyError, RuntimeError, CheckpointError) as error:
        raise ArgumentError(
            f"{option} {folder} does not hold a causal language model that transformers can load: {error}"
        ) from error
    wrong = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if wrong:
        raise ArgumentError(
            f"{option} {folder} lacks {len(wrong)} of the weights of {type(model).__name__}, or has them in "
            f"another shape: {', '.join(wrong[:5])}. Get a complete checkpoint; training would start from random "
            "weights."
        )
    model = model.to(device)  # type: ignore[arg-type]  # transformers hides its signature
    if device.type == "cpu":
        _take_out_of_file(model)
    return model


_ALIGNMENT = 64
"""Bytes: torch's own tensors begin at multiples of it, those in a file where its header ends."""


def _take_out_of_file(model: nn.Module) -> None:
    """Copy weights that lie in the file that they were loaded from, which is mapped into memory. The optimizer's first step would do it
    page by page, which takes several times as long; and how they lie, which libraries may round by, would follow from the file."""
    for parameter in model.parameters():
        if parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()


def empty_model(folder: str, option: str = "--hf-checkpoint") -> PreTrainedModel:
    """Make the model in `folder` with its parameters on the meta device, for a rank that gets them from another one."""
    from accelerate import init_empty_weights

    check_checkpoint(folder, option)
    with init_empty_weights(include_buffers=False):
        config = in_high_precision(load_configuration(folder))
        model: PreTrainedModel = from_config(auto_model(config), config, dtype=torch.float32)
    model.tie_weights()
    model.train(False)
    return model


def prepare(
    model: PreTrainedModel,
    processor: Processor | None = None,
    exchanges: Sequence[Callable[[PreTrainedModel], object]] = (),
) -> Head:
    """Switch `model` (of a vision-language model what reads tokens) to packed attention and return its head. Leaves random states
    alone. A model on the meta device is not compared.

    The token that fills up batches elsewhere is trained like any other: packed rows have no such places, and where it occurs it
    is text, such as the end of a turn. Rotary embeddings that depend on the length of what is read become those of each sequence
    alone (`slime_core.tensors.rotary`).

    Args:
        processor: of a vision-language model, whose rows are compared with images in them.
        exchanges: what else gives `model` other ways to compute its own numbers. They are compared, too.

    Raises:
        PluginError: the model computes something that this backend does not reproduce; says what.
    """
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None  # torch would keep the gradient from that row
    share = not per_sequence(model)
    if model.device.type == "meta":
        for exchange in exchanges:
            exchange(model)
        _set_attention(model)
        return find_head(model)
    was_training = model.training
    model.train(False)
    samples, far = _probe_samples(vocabulary_size(model), processor), _far_position(model)
    with torch.no_grad():
        positions = [*range(6), far]  # of the last sample
        logits = torch.cat(
            [
                *(_response_logits(model, sample, processor=processor) for sample in samples[:-1]),
                _response_logits(model, samples[-1], positions),
            ]
        )
        row = pack_samples(samples, vocab_size=vocabulary_size(model), share_prompts=share, device=model.device)
        if processor is not None:
            row = Vision(model, processor).laid(row, samples)
        row.position_ids[..., -1] = far
        for exchange in exchanges:
            exchange(model)
        try:
            _set_attention(model)
        except ValueError as reason:
            raise PluginError(
                f"The torch backend cannot train {type(model).__name__}: its attention cannot be exchanged. {reason}"
            ) from reason
        head = find_head(model)
        hidden = packed_hidden(model, row)
        found, _ = token_log_probs(hidden[row.predictors], head, row.targets)
        wanted = logits.to(found.dtype).log_softmax(-1).gather(1, row.targets[:, None]).squeeze(1)
    model.train(was_training)
    error, spread = (found - wanted).abs().max().item(), logits.std().item()
    if not error <= 1e-3 * spread:
        raise PluginError(
            f"The torch backend cannot train {type(model).__name__}: on packed rows its log-probabilities differ by "
            f"{error:.2e} from those of single sequences (its logits spread by {spread:.2e}). It mixes tokens other "
            "than by attention, ignores position_ids, computes a position otherwise when another sequence is longer, or changes "
            "its logits in a way that is not supported."
        )
    return head


def packed_hidden(model: PreTrainedModel, row: PackedRow) -> Tensor:
    """The (N, H) last hidden states of a packed row of N tokens, which the head sees."""
    output = model.base_model(
        input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, segments=row.segments, **row.images
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many token ids the model can read."""
    return len(_input_embedding(model))


def add_value_head(model: PreTrainedModel, folder: str | None = None) -> nn.Linear:
    """Give `model` a head that turns a hidden state into one number, in place of logits: a linear layer without bias.

    The head is a part of the model, so it is trained, saved and exported with it. Its weight is that of the checkpoint
    in `folder`, if that is one of a critic, else 0. An output embedding that is not tied to the input's is frozen.
    """
    embedding, output = _input_embedding(model), _output_embedding(model)
    head = nn.Linear(output.weight.shape[1], 1, bias=False, device=embedding.device, dtype=embedding.dtype)
    nn.init.zeros_(head.weight)
    for file in weight_files_if_any(Path(folder)) if folder else ():
        with safe_open(file, "pt") as stored:
            if f"{VALUE_HEAD}.weight" in stored.keys():  # noqa: SIM118 - it is no mapping
                head.weight.data.copy_(stored.get_tensor(f"{VALUE_HEAD}.weight"))
    model.add_module(VALUE_HEAD, head)
    for parameter in output.parameters():
        parameter.requires_grad_(parameter is embedding)
    return head


def freeze(model: PreTrainedModel, args: TrainArguments) -> None:
    """Let only those parameters ask for gradients that the options say are trained, and a critic's head.

    Raises:
        ArgumentError: see `slime_core.training.frozen.trained_names`.
    """
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith(f"{VALUE_HEAD}.")}
    vision = vision_names(model) if args.freeze_vision else ()
    for name in parameters.keys() - trained_names(args, list(parameters), type(model).__name__, vision):
        parameters[name].requires_grad_(False)


def require_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Raise `ArgumentError` if `model` cannot compute its layers again in the backward pass."""
    if not model.supports_gradient_checkpointing:
        raise ArgumentError(
            f"--gradient-checkpointing: {type(model).__name__} does not support it in transformers. Leave the option out; smaller "
            "micro-batches (--max-tokens-per-gpu) need less memory, too."
        )


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Have the layers of `model` computed again in the backward pass."""
    # The former name, which transformers goes on calling for models that have their own, is deprecated since 5.23.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable: Callable[..., None] = getattr(model, next(name for name in names if hasattr(model, name)))
    enable({"use_reentrant": False})


def find_head(model: PreTrainedModel) -> Head:
    """The model's output embedding and what its configuration says is done to the logits.

    Raises:
        PluginError: the output embedding is not a linear layer.
    """
    linear, config = _output_embedding(model), model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None))


def _input_embedding(model: PreTrainedModel) -> Tensor:
    """The (V, H) weight of the input embedding."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _output_embedding(model: PreTrainedModel) -> nn.Linear:
    linear: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers does not annotate it
    if not isinstance(linear, nn.Linear):
        raise PluginError(
            f"The torch backend cannot train {type(model).__name__}: its output embedding is {type(linear).__name__}, "
            "not a linear layer."
        )
    return linear


def _set_attention(model: PreTrainedModel) -> None:
    """Switch what reads tokens to packed attention. A vision tower keeps its own, which keeps images apart itself."""
    register()
    if language_model(model) is model.base_model:
        model.set_attn_implementation(PACKED)
    else:
        model.set_attn_implementation({"text_config": PACKED})


def _probe_samples(vocabulary: int, processor: Processor | None) -> list[Sample]:
    """A sequence alone, two that share a prompt, and another one alone, with fixed, varied tokens. With a processor also rows with
    one image and with two, between them and in a shared prompt."""
    ids = [n * 7919 % vocabulary for n in range(1, 24)]
    shown: list[Sample] = []
    if processor is not None:
        ids = [1 if processor.is_special(token) else token for token in ids]
        images = [_picture(90, 60), _picture(40, 100), _picture(70, 70)]
        first, second, third = ([processor.token] * count for count in processor.counts(images))
        begin = [*ids[:2], *first, ids[2]]
        shown = [
            Sample(group_index=3, tokens=begin + ids[3:7], response_length=4, images=images[:1]),
            Sample(group_index=3, tokens=begin + ids[6:9], response_length=3, images=images[:1]),
            Sample(group_index=4, tokens=[*second, ids[4], *third, *ids[9:14]], response_length=5, images=images[1:]),
        ]
    shared = ids[8:13]
    return [
        *shown,
        Sample(group_index=0, tokens=ids[:8], response_length=7),
        Sample(group_index=1, tokens=shared + ids[13:17], response_length=4),
        Sample(group_index=1, tokens=shared + ids[17:], response_length=6),
        Sample(group_index=2, tokens=ids[15:], response_length=7),
    ]


def _picture(width: int, height: int) -> bytes:
    """An encoded image in which no two patches are alike."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = bytes(
        (x * 3 + y * 7 * channel + x * y) % 256 for y in range(height) for x in range(width) for channel in range(3)
    )
    Image.frombytes("RGB", (width, height), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _far_position(model: PreTrainedModel) -> int:
    """A position at which everything has changed that changes with the length of a sequence: beyond the longest one that the
    model was made for, or the last one where positions are rows of a table. A token there costs no more than another."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 8:
        return 6
    return 2 * limit if any(name.endswith("inv_freq") for name, _ in model.named_buffers()) else limit - 1


def _response_logits(
    model: PreTrainedModel, sample: Sample, positions: Sequence[int] = (), processor: Processor | None = None
) -> Tensor:
    """The (R, V) logits from which the model itself predicts the R tokens of the response.

    Args:
        positions: of all tokens but the last; counted from 0 if there are none.
    """
    ids = torch.tensor(token_ids(sample)[:-1], dtype=torch.int64, device=model.device)[None]
    # With a mask, transformers does not take a leap of the positions for the beginning of another sequence.
    given = (
        {"position_ids": torch.tensor([positions], device=model.device), "attention_mask": torch.ones_like(ids)}
        if positions
        else {}
        if processor is None
        else processor.alone(sample, ids)
    )
    logits: Tensor = model(input_ids=ids, use_cache=False, **given).logits[0]
    return logits[-sample.response_length :]


def check_checkpoint(folder: str, option: str = "--hf-checkpoint") -> None:
    """Raise `ArgumentError` unless `folder` looks like a Hugging Face checkpoint.

    Args:
        option: that names the folder, for messages.
    """
    require_hugging_face(folder, option)
    require_folder(folder, option)
