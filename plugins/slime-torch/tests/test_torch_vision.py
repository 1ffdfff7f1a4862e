"""Rows with images: packed they give the loss and every gradient of each sample alone; what would train wrongly is refused."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from vision_checkpoints import FAMILIES, make_model, picture, write_checkpoint

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.data.vision import load_processor
from slime_core.errors import ArgumentError, PluginError, SampleError
from slime_core.sample import Sample
from slime_core.tensors.packed_rows import Segments
from slime_core.training.batches import make_train_batch
from slime_torch.backend import TorchBackend
from slime_torch.vision import Vision


@pytest.fixture(scope="module", params=FAMILIES)
def vision(request: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint of a family, its processor, and its model in float64."""
    folder = write_checkpoint(tmp_path_factory.mktemp("vision") / request.param, request.param)
    processor = load_processor(str(folder))
    model = make_model(request.param).double()
    return SimpleNamespace(folder=folder, processor=processor, model=model, family=request.param)


def sample(
    processor: Any, *parts: Any, response: int, group: int = 0, mask: list[int] | None = None, seed: int = 0
) -> Sample:
    """A sample of random text (given as numbers of tokens) and images."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    images = []
    for part in parts:
        if isinstance(part, int):
            tokens += torch.randint(0, 250, (part,), generator=generator).tolist()
            continue
        tokens += [258, *[processor.token] * processor.counts([part])[0], 259]
        images.append(part)
    return Sample(tokens=tokens, images=images, response_length=response, loss_mask=mask, group_index=group, index=seed)


def rows(processor: Any) -> list[Sample]:
    """Rows with one image, none, several, an image behind the last trained token, and one in the middle of the response."""
    return [
        sample(processor, 3, picture(60, 40), 5, response=4, seed=1, group=1),
        sample(processor, 7, response=3, seed=2, group=2),
        sample(processor, 2, picture(40, 90), 1, picture(30, 30), 6, response=5, seed=3, group=3),
        sample(
            processor,
            picture(56, 28),
            4,
            picture(80, 80),
            response=4 + 2 + processor.counts([picture(80, 80)])[0],
            mask=[1, 1, 1, 0] + [0] * (2 + processor.counts([picture(80, 80)])[0]),
            seed=4,
            group=4,
        ),
    ]


def alone(vision: SimpleNamespace, samples: list[Sample], count: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of transformers' own model, sample by sample, as a mean over the trained tokens."""
    model = copy.deepcopy(vision.model)
    total = 0.0
    for one in samples:
        ids = torch.tensor([one.tokens])
        logits = model(input_ids=ids, use_cache=False, **vision.processor.alone(one, ids)).logits[0]
        first = len(one.tokens) - one.response_length
        places = [first + j for j, on in enumerate(one.trained_mask) if on]
        loss = (
            torch.nn.functional.cross_entropy(logits[[p - 1 for p in places]], ids[0][places], reduction="sum") / count
        )
        loss.backward()
        total += loss.item()
    return total, {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}


def differences(found: Any, expected: dict[str, torch.Tensor]) -> float:
    scale = max(g.abs().max().item() for g in expected.values())
    assert found.keys() == expected.keys()
    return max((found[n] - expected[n]).abs().max().item() for n in expected) / scale


@pytest.mark.parametrize("size", [2, 4])
def test_packed_rows_with_images_give_the_loss_and_gradients_of_each_sample_alone(
    vision: Any, tiny: Any, size: int
) -> None:
    samples = rows(vision.processor)
    count = sum(sum(s.trained_mask) for s in samples)
    with tiny.float64():
        loss, expected = alone(vision, samples, count)
        backend = tiny.backend(copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder))
        batch = make_train_batch(samples, mean="token", micro_batch_size=size)
        found = dict(backend.gradients(batch))
        assert backend.evaluate(batch)["loss"] == pytest.approx(loss, rel=1e-12)
    assert differences(found, expected) <= 1e-12


def grouped(processor: Any) -> list[Sample]:
    """Two groups whose prompts have images, one answer of which has an image too, and one of text."""
    first, second = picture(60, 40), picture(40, 90)
    found = []
    for number, length in enumerate((3, 5, 2)):
        one = sample(processor, 4, first, 2, second, 3, response=0, seed=7, group=1)
        more = sample(processor, length, response=length, seed=20 + number)
        found.append(replace(one, tokens=one.tokens + more.tokens, response_length=length, index=number))
    with_image = sample(processor, picture(30, 60), 4, response=4, seed=30)
    tokens = found[0].tokens[: -found[0].response_length] + with_image.tokens
    mask = [0] * (len(with_image.tokens) - 4) + [1] * 4
    images = found[0].images + with_image.images
    found.insert(1, replace(found[0], tokens=tokens, images=images, response_length=len(mask), loss_mask=mask, index=3))
    return [
        *found,
        sample(processor, 5, response=3, seed=8, group=2),
        sample(processor, 5, response=3, seed=9, group=3),
    ]


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointed"])
def test_a_prompt_with_images_that_a_group_shares_is_computed_once_and_exactly(
    vision: Any, tiny: Any, changes: Any
) -> None:
    samples = grouped(vision.processor)
    count = sum(sum(s.trained_mask) for s in samples)
    with tiny.float64():
        loss, expected = alone(vision, samples, count)
        backend = tiny.backend(copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder), **changes)
        batch = make_train_batch(samples, mean="token", micro_batch_size=len(samples), share_prompts=True)
        row = backend._predictor.pack(batch, batch.micro_batches[0])
        assert len(row.pieces) < 2 * len(samples)
        assert backend.evaluate(batch)["loss"] == pytest.approx(loss, rel=1e-12)
        assert differences(dict(backend.gradients(batch)), expected) <= 1e-12


def of_text(name: str) -> bool:
    """Whether a parameter is one of the part that reads tokens."""
    return ".language_model." in name or ".text_model." in name


def policy_gradient(args: Any, inputs: LossInputs) -> LossOutputs:
    """PPO's clipped objective with a k3 estimate of the divergence from a reference."""
    ratio = (inputs.log_probs - inputs.old_log_probs).exp()
    objective = torch.minimum(ratio * inputs.advantages, ratio.clamp(0.8, 1.2) * inputs.advantages)
    gap = inputs.ref_log_probs - inputs.log_probs
    return LossOutputs(inputs.reduce(0.1 * (gap.exp() - gap - 1) - objective))


def test_a_policys_gradients_are_those_of_samples_alone_also_where_only_images_differ(vision: Any, tiny: Any) -> None:
    samples = grouped(vision.processor)
    other = [picture(60, 40, seed=5), *samples[0].images[1:]]  # the same tokens, and another image
    samples.insert(2, replace(samples[0], images=other, index=9))

    def column(scale: float) -> list[list[float]]:
        return [[-5.0 + scale * (i + j % 3) for j in range(s.response_length)] for i, s in enumerate(samples)]

    columns = {"advantages": [[(-1.0) ** i * 2] * s.response_length for i, s in enumerate(samples)]}
    columns |= {"old_log_probs": column(0.1), "ref_log_probs": column(-0.1)}
    found = []
    with tiny.float64():
        backend = tiny.backend(copy.deepcopy(vision.model), loss=policy_gradient, hf_checkpoint=str(vision.folder))
        for size, share in ((len(samples), True), (1, False)):
            given = {"columns": columns, "micro_batch_size": size, "share_prompts": share}
            found.append(dict(backend.gradients(make_train_batch(samples, **given))))
    assert max(gradient.abs().max() for gradient in found[0].values()) > 0
    assert differences(*found) <= 1e-10


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_frozen_vision_and_adapters_train_the_text_model_alone(vision: Any, tiny: Any, tmp_path: Path) -> None:
    batch = make_train_batch(rows(vision.processor), mean="token", micro_batch_size=2)
    frozen = tiny.backend(copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder), freeze_vision=True)
    before = {name: weight.clone() for name, weight in frozen.weights()}
    frozen.train_step(batch)
    same = {name for name, weight in frozen.weights() if torch.equal(weight, before[name])}
    assert same
    assert all(not of_text(name) and "lm_head" not in name for name in same)
    assert all(of_text(name) or "lm_head" in name for name in before.keys() - same)

    lora = {"lora_rank": 2, "lora_alpha": 4, "target_modules": ["all-linear"], "freeze_vision": True}
    adapted = tiny.backend(copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder), **lora)
    trained = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(map(of_text, trained))
    adapted.train_step(batch)
    adapted.export_hf(tmp_path)
    from peft import PeftModel

    base = AutoModelForImageTextToText.from_pretrained(vision.folder)
    merged: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    assert {n for n, _ in merged.named_parameters()} == before.keys()
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    assert all(
        torch.allclose(weight.float(), exported[n].float(), atol=1e-6) for n, weight in merged.state_dict().items()
    )
    both = tiny.backend(
        copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder), **{**lora, "freeze_vision": False}
    )
    assert any(not of_text(name) for name, p in both.model.named_parameters() if p.requires_grad)


def test_an_export_is_a_whole_checkpoint_that_transformers_computes_alike(
    vision: Any, tiny: Any, tmp_path: Path
) -> None:
    samples = rows(vision.processor)
    batch = make_train_batch(samples, mean="token", micro_batch_size=4)
    backend = tiny.backend(make_model(vision.family), hf_checkpoint=str(vision.folder), lr=1e-2)
    backend.train_step(batch)
    backend.export_hf(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((vision.folder / "tokenizer.json").read_bytes())
    processor = load_processor(str(tmp_path))
    assert processor is not None
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for one, given in zip(samples, backend.log_probs(batch), strict=True):
        ids = torch.tensor([one.tokens])
        logits = model(input_ids=ids, use_cache=False, **processor.alone(one, ids)).logits[0].log_softmax(-1)
        first = len(one.tokens) - one.response_length
        for place, found in enumerate(given):
            if one.trained_mask[place]:
                expected = logits[first + place - 1, one.tokens[first + place]].item()
                assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("rank", [0, 2])
def test_an_export_of_a_stored_state_is_that_of_the_run(vision: Any, tiny: Any, tmp_path: Path, rank: int) -> None:
    folders = {name: tmp_path / name for name in ("state", "run", "stored")}
    for folder in folders.values():
        folder.mkdir()
    lora = {"lora_rank": rank, "lora_alpha": 4, "target_modules": ["all-linear"]} if rank else {}
    settings = {"hf_checkpoint": str(vision.folder), "lr": 1e-2, "freeze_vision": True, **lora}
    backend = tiny.backend(make_model(vision.family), **settings)
    backend.train_step(make_train_batch(rows(vision.processor), mean="token", micro_batch_size=4))
    backend.save_state(folders["state"])
    backend.export_hf(folders["run"])
    TorchBackend(backend.args).export_state(folders["state"], folders["stored"], {})
    found, wanted = (load_file(folders[name] / "model.safetensors") for name in ("stored", "run"))
    assert found.keys() == wanted.keys()
    assert [name for name, weight in found.items() if not torch.equal(weight, wanted[name])] == []
    assert {path.name for path in folders["run"].iterdir()} <= {path.name for path in folders["stored"].iterdir()}


def test_blank_and_shuffled_images_change_the_loss(vision: Any, tiny: Any) -> None:
    samples = [sample(vision.processor, 2, picture(40, 40, seed), 5, response=4, seed=seed) for seed in range(4)]
    backend = tiny.backend(copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder))

    def loss(images: list[list[bytes]]) -> float:
        shown = [replace(one, images=own) for one, own in zip(samples, images, strict=True)]
        return float(backend.evaluate(make_train_batch(shown, mean="token", micro_batch_size=4))["loss"])

    own = [one.images for one in samples]
    assert abs(loss([*own[1:], own[0]]) - loss(own)) > 1e-4
    blank = io.BytesIO()
    Image.new("RGB", (40, 40)).save(blank, "PNG")
    assert abs(loss([[blank.getvalue()]] * 4) - loss(own)) > 1e-4


def test_what_does_not_fit_together_is_named(vision: Any, tiny: Any) -> None:
    good = sample(vision.processor, 3, picture(60, 40), 5, response=4, seed=1)
    backend = tiny.backend(copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder))
    pad = vision.processor.token
    for bad, message in (
        (replace(good, images=[]), "image tokens, and its 0 images give 0 features"),
        (replace(good, images=good.images * 2), "and its 2 images give"),
        (replace(good, tokens=[*good.tokens[:-1], pad]), "1 image tokens behind those of its 1 images"),
        (replace(good, images=[b"broken"]), "image 1: an image of 6 bytes is in no format|in no format that is read"),
    ):
        with pytest.raises(SampleError, match=message) as raised:
            backend.evaluate(make_train_batch([good, bad], micro_batch_size=2))
        assert "sample 1" in str(raised.value)


def test_images_for_a_model_that_reads_none_are_refused(tiny: Any) -> None:
    backend = tiny.backend(tiny.model())
    batch = make_train_batch([Sample(index=0, tokens=[1, 2, 3], response_length=2, images=[picture(30, 30)])])
    with pytest.raises(ArgumentError, match=r"sample 0 has images, and the model \(LlamaForCausalLM\) reads none"):
        backend.evaluate(batch)


def laid_wrongly(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant one of the mistakes that give other numbers and no error."""
    right = Vision.laid

    def laid(self: Vision, row: Any, samples: Any) -> Any:
        made = right(self, row, samples)
        count = row.input_ids.shape[1]
        if fault == "one long row":
            return replace(made, segments=Segments.of([(count,)]))
        if fault == "positions of text":
            return replace(
                made, position_ids=row.position_ids if made.position_ids.ndim == 2 else row.position_ids.repeat(3, 1, 1)
            )
        if fault == "positions go on":
            return replace(made, position_ids=torch.arange(count).expand_as(made.position_ids).clone())
        if fault == "other order" and made.images:
            pixels = made.images["pixel_values"]
            return replace(made, images={**made.images, "pixel_values": pixels.flip(0)})
        if fault == "images are causal":
            return replace(made, segments=replace(made.segments, blocks=()))
        if fault == "no images":
            blank = {n: torch.full_like(t, 0.5) if n == "pixel_values" else t for n, t in made.images.items()}
            return replace(made, images=blank)
        return made

    monkeypatch.setattr(Vision, "laid", laid)


@pytest.mark.parametrize(
    "fault", ["one long row", "positions of text", "positions go on", "other order", "images are causal", "no images"]
)
def test_a_mistake_that_gives_no_error_is_found_before_training(
    vision: Any, tiny: Any, fault: str, monkeypatch: Any
) -> None:
    only_in = {"images are causal": ("gemma3",), "positions of text": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}
    if vision.family not in only_in.get(fault, FAMILIES):
        pytest.skip("makes no difference to this family")
    laid_wrongly(fault, monkeypatch)
    with pytest.raises(PluginError, match="on packed rows its log-probabilities differ"):
        tiny.backend(copy.deepcopy(vision.model), hf_checkpoint=str(vision.folder))
