"""`--only-train-params-name-list`, `--freeze-params-name-list` and `--reset-optimizer-states`: what is trained is trained as
transformers and torch's optimizers do it, and what is frozen stays bit for bit what it was."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.errors import ArgumentError
from slime_core.training.batches import make_train_batch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

LISTS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "embedding and output layer": ("llama_untied", {"freeze_params_name_list": ["embed_tokens", "lm_head"]}),
    "a layer alone": ("qwen3", {"only_train_params_name_list": [r"layers\.1\."]}),
    "the first layer": ("llama_untied", {"freeze_params_name_list": [r"layers\.0\."]}),
    "queries alone": ("qwen3", {"only_train_params_name_list": ["q_proj", "q_norm"]}),
    "a tied embedding": ("llama", {"freeze_params_name_list": ["embed"]}),
    "experts": ("qwen3_moe", {"only_train_params_name_list": ["experts"]}),
    "all but experts": ("glm4_moe", {"freeze_params_name_list": [r"mlp\.experts"]}),
}


def batch(tiny: SimpleNamespace, seed: int = 0) -> Any:
    return make_train_batch(tiny.samples(tiny.mixed, seed=seed), micro_batch_size=3)


def weights(backend: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backend.weights()}


@pytest.mark.parametrize("case", LISTS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_and_steps_are_those_of_transformers_with_the_same_parameters_frozen(
    tiny: SimpleNamespace, case: str, checkpointing: bool
) -> None:
    architecture, lists = LISTS[case]
    if checkpointing and "moe" in architecture:
        pytest.skip("in a backward pass float64 does not hold on to itself")
    ((option, patterns),) = lists.items()
    with tiny.float64():
        model = tiny.model(architecture)
        _, gradients = tiny.one_by_one(model, tiny.samples(tiny.mixed), per_token=False)
        reference = copy.deepcopy(model)
        backend = tiny.backend(model, lr=0.05, lr_decay_style="constant", gradient_checkpointing=checkpointing, **lists)
        before = weights(backend)
        found = dict(backend.gradients(batch(tiny)))
        backend.train_step(batch(tiny))
    trained = set()
    for name, parameter in reference.named_parameters():
        named = any(re.search(pattern, name) for pattern in patterns)
        if named == (option == "only_train_params_name_list"):
            trained.add(name)
            parameter.grad = gradients[name] if gradients[name] is not None else torch.zeros_like(parameter)
    assert found.keys() == trained
    assert 0 < len(trained) < len(before)
    scale = max(gradient.abs().max().item() for gradient in found.values())
    for name in trained:
        assert (found[name] - reference.get_parameter(name).grad).abs().max().item() <= 1e-12 * scale, name
    own = [reference.get_parameter(name) for name in sorted(trained)]
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW([group for group in groups if group["params"]], lr=0.05, betas=(0.9, 0.999)).step()
    for name, weight in weights(backend).items():
        if name in trained:
            assert not torch.equal(weight, before[name]), name
            assert torch.allclose(weight, reference.get_parameter(name).detach(), atol=1e-6), name
        else:
            assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("case", LISTS)
def test_log_probs_are_those_of_the_step_and_of_the_reference_bit_for_bit(tiny: SimpleNamespace, case: str) -> None:
    architecture, lists = LISTS[case]
    seen = []

    def recording(args: Any, inputs: Any) -> Any:
        from slime_losses.sft import sft_loss

        seen.append(inputs.log_probs.tolist())
        return sft_loss(args, inputs)

    actor = tiny.backend(tiny.model(architecture, dtype=torch.float32), recording, **lists)
    reference = tiny.backend(tiny.model(architecture, dtype=torch.float32), role="reference", **lists)
    given = batch(tiny)
    before = actor.log_probs(given)
    assert reference.log_probs(given) == before
    actor.train_step(given)
    flat = [
        x for s, row in zip(given.samples, before, strict=True) for x, t in zip(row, s.trained_mask, strict=True) if t
    ]
    assert [x for part in seen for x in part] == flat


@pytest.mark.parametrize("recipe", ["blockwise", "delayed"])
def test_in_fp8_trained_parameters_have_the_gradients_that_they_have_without_the_option(
    tiny: SimpleNamespace, recipe: str
) -> None:
    options = {**tiny.fp8, "fp8_recipe": recipe}
    _, lists = LISTS["the first layer"]
    whole, part = (
        tiny.backend(tiny.model("llama_untied", dtype=torch.float32), **options, **own) for own in ({}, lists)
    )
    for step in range(2):
        expected = dict(whole.gradients(batch(tiny, step)))
        found = dict(part.gradients(batch(tiny, step)))
        assert all("layers.0." not in name for name in found)
        for name, gradient in found.items():
            assert torch.equal(gradient, expected[name]), name
        norm = [backend.train_step(batch(tiny, step))["grad_norm"] for backend in (whole, part)]
        assert norm[1] < norm[0]
        if step == 0:  # the second step is only the same if the first one took the same weights along
            break


def test_a_critics_value_head_is_trained_whatever_is_named(tiny: SimpleNamespace) -> None:
    def squared_error(args: Any, inputs: Any) -> Any:
        from slime_core.contracts.loss import LossOutputs

        return LossOutputs(inputs.reduce((inputs.values - 1.0).square()))

    critic = tiny.backend(
        tiny.model("qwen3", dtype=torch.float32),
        squared_error,
        "critic",
        only_train_params_name_list=["k_proj"],
        lr=0.1,
    )
    before = weights(critic)
    for _ in range(2):  # the head begins as 0, so that nothing else has a gradient in the first step
        critic.train_step(batch(tiny))
    changed = {name for name, weight in weights(critic).items() if not torch.equal(weight, before[name])}
    assert changed == {"value_head.weight", *(name for name in before if "k_proj" in name)}


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "the first layer"), ("the first layer", None), ("the first layer", "embedding and output layer")],
)
def test_a_run_that_goes_on_with_another_list_has_the_copies_of_weights_that_it_had(
    before: str | None, after: str | None, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    def backend(case: str | None) -> Any:
        lists = LISTS[case][1] if case else {}
        return tiny.backend(tiny.model("llama_untied", dtype=torch.float32), lr=0.02, **lists)

    first = backend(before)
    first.train_step(batch(tiny))
    first.keep_weights("reference")
    kept = weights(first)
    first.train_step(batch(tiny, 1))
    first.save_state(tmp_path)
    second = backend(after)
    second.load_state(tmp_path)
    second.train_step(batch(tiny, 2))
    present = weights(second)
    with second.with_kept_weights("reference"):
        found = weights(second)
    assert [name for name, weight in kept.items() if not torch.equal(found[name], weight)] == []
    found = weights(second)
    assert [name for name, weight in present.items() if not torch.equal(found[name], weight)] == []


def test_a_stopped_run_goes_on_bit_for_bit_also_from_other_initial_weights(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    _, lists = LISTS["the first layer"]

    def backend() -> Any:
        return tiny.backend(tiny.model("llama_untied", dtype=torch.float32), lr=0.02, **lists)

    whole = backend()
    for step in range(4):
        whole.train_step(batch(tiny, step))
    first = backend()
    for step in range(2):
        first.train_step(batch(tiny, step))
    first.save_state(tmp_path)
    second = backend()
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.zero_()  # frozen ones come from the checkpoint too
    second.load_state(tmp_path)
    for step in range(2, 4):
        second.train_step(batch(tiny, step))
    found = weights(second)
    assert all(torch.equal(found[name], weight) for name, weight in weights(whole).items())


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ({"only_train_params_name_list": ["linear_fc1"]}, "linear_fc1 is gate_proj and up_proj"),
        ({"freeze_params_name_list": ["q_proj", "output_layer"]}, "output_layer is lm_head.*embedding's name alone"),
        (
            {"only_train_params_name_list": ["wq_b"]},
            r"Its parameters are model.embed_tokens.weight, model.layers.N.self_attn",
        ),
        ({"freeze_params_name_list": ["."]}, "leaves no parameter of LlamaForCausalLM to train"),
    ],
)
def test_expressions_that_name_nothing_or_everything_are_refused(
    tiny: SimpleNamespace, lists: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(ArgumentError, match=says):
        tiny.backend(tiny.model("llama"), **lists)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_optimizer_that_forgets_takes_the_steps_of_a_new_one(tiny: SimpleNamespace, optimizer: str) -> None:
    options = {"lr": 0.02, "lr_decay_style": "constant", "optimizer": optimizer}
    plain, reset = (tiny.backend(tiny.model("llama", dtype=torch.float32), **options) for _ in range(2))
    for backend in (plain, reset):
        backend.train_step(batch(tiny, 0))
        backend.train_step(batch(tiny, 1))
    model = tiny.model("llama", dtype=torch.float32)
    model.load_state_dict(reset.model.state_dict())
    new = tiny.backend(model, **options)
    reset.reset_optimizer()
    for step in (2, 3):
        metrics = [backend.train_step(batch(tiny, step)) for backend in (reset, new)]
        assert metrics[0] == metrics[1]
        plain.train_step(batch(tiny, step))
    found, expected, other = weights(reset), weights(new), weights(plain)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert not all(torch.equal(found[name], weight) for name, weight in other.items())
