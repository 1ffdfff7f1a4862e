"""A model that is served in FP8: what the engine gets, what is exported, and what training computes with are the bytes that the
converter writes; a difference between them is found before training."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from served_cases import MOE, OF_RECIPE, convert, differing, grpo, planned, small_model, tensors
from transformers import AutoModelForCausalLM

from slime_core.cli import main
from slime_core.data.quantised_checkpoints import quantised_checkpoint
from slime_core.errors import ArgumentError, TrainingError
from slime_core.plugins import Plugins
from slime_core.plugins.discovery import discover
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample
from slime_core.tensors.quantised_weights import load_restored, quantised_like, restored, write_quantised
from slime_core.training.batches import make_train_batch

NUM_TOKENS = 259  # of the small model
STRATEGIES = ("block", "channel", "tensor", "mxfp8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in FP8, by strategy."""
    parent = tmp_path_factory.mktemp("served")
    return {strategy: convert(model, parent / strategy, strategy) for strategy in STRATEGIES}


@pytest.fixture
def forward_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """{name: the matrix that the last forward pass of training multiplied with}."""
    from slime_fp8.operands import DelayedOperands, Operands
    from slime_fp8.recipe import Recipe
    from slime_fp8.recipes.delayed import Delayed

    found: dict[str, torch.Tensor] = {}
    for kind in (Recipe, Delayed):

        def linear(self, name, plain=kind.linear):
            product = plain(self, name)
            product.operands.weight_name = name
            return product

        monkeypatch.setattr(kind, "linear", linear)
    for kind in (Operands, DelayedOperands):

        def both(self, role, matrix, plain=kind.both):
            made = plain(self, role, matrix)
            if role == "weight":
                found[self.weight_name] = made[0].restored()
            return made

        monkeypatch.setattr(kind, "both", both)
    return found


@pytest.mark.parametrize(
    ("recipe", "changes"), [*((recipe, {}) for recipe in OF_RECIPE), ("blockwise", MOE), ("mxfp8", MOE)]
)
def test_converter_trainer_engine_and_export_have_the_same_bits(
    model, served, chat_rows, tmp_path, forward_weights, recipe, changes
):
    """After a step of training. Delayed scaling multiplies with a scale of the step before, so there the weights stand still."""
    strategy = OF_RECIPE[recipe]
    if changes:
        model = small_model(tmp_path / "moe", **changes)
        served = {strategy: convert(model, tmp_path / "served", strategy)}
    words = grpo(served[strategy], model, chat_rows, tmp_path)
    words += [
        "--fp8-format",
        "e4m3",
        "--fp8-recipe",
        recipe,
        "--fp8-emulation",
        "--lr",
        "0" if recipe == "delayed" else "1e-2",
    ]
    words += ["--save-interval", "1", "--save-hf", str(tmp_path / "hf-{rollout_id}")]
    assert main(["train", *words]) == 0
    plain, export = tmp_path / "hf-0", tmp_path / "hf-0" / "quantised"
    converter = tensors(convert(plain, tmp_path / "again", strategy))
    engine = load_file(tmp_path / "engine-1.safetensors")
    assert differing(converter, tensors(export)) == []
    assert differing(converter, engine) == []
    assert json.loads((export / "config.json").read_text()) == json.loads(
        (served[strategy] / "config.json").read_text()
    )
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    checkpoint = quantised_checkpoint(str(export), Plugins())
    assert checkpoint is not None
    assert len(forward_weights) == 3 * (4 + 4 * 3 if changes else 7)
    of_engine = dict(restored(in_order(engine, checkpoint), checkpoint.format))
    assert differing(forward_weights, {name: of_engine[name] for name in forward_weights}) == []
    changed = differing(tensors(served[strategy]), engine)
    assert len(changed) > 20 if recipe != "delayed" else not changed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_engine_computes_with_the_restored_weights_that_it_was_handed(served, model, strategy, monkeypatch):
    """Bit for bit, whether they come from a trainer or from the checkpoint itself."""
    from slime_engine_local import model as engine_model

    monkeypatch.setattr(engine_model, "packing_works", lambda: False)
    monkeypatch.setattr(engine_model.FusedDecoder, "__init__", lambda *given: (_ for _ in ()).throw(TypeError))
    checkpoint = quantised_checkpoint(str(served[strategy]), Plugins())
    assert checkpoint is not None
    expected = dict(restored(in_order(tensors(served[strategy]), checkpoint), checkpoint.format, torch.float32))
    handed = dict(restored(quantised_like(tensors(model).items(), checkpoint), checkpoint.format, torch.float32))
    assert differing(expected, handed) == []
    for made in (
        engine_model.LanguageModel(str(served[strategy]), handed),
        engine_model.LanguageModel.from_checkpoint(str(served[strategy]), checkpoint),
    ):
        own = dict(made._module.named_parameters())
        assert differing({name: tensor.data for name, tensor in own.items()}, expected) == []
        made.replace((name, tensor * 2) for name, tensor in expected.items())
        assert differing({n: t.data for n, t in own.items()}, {n: t * 2 for n, t in expected.items()}) == []


def in_order(found, checkpoint):
    """The tensors of a file, scales behind their weights."""
    of = {
        name: list(checkpoint.format.layout(name, found[name].shape))
        for name in found
        if checkpoint.format.quantises(name)
    }
    scales = {own for names in of.values() for own in names[1:]}
    return [(own, found[own]) for name in found if name not in scales for own in of.get(name, [name])]


def test_an_fp8_checkpoint_alone_trains_from_its_restored_numbers_and_says_so(served, chat_rows, tmp_path):
    words = grpo(served["block"], None, chat_rows, tmp_path)
    notes = planned(words).notes
    assert any(note.startswith(f"--hf-checkpoint {served['block']} is quantised: the trainer starts") for note in notes)
    assert any("21 weights in FP8 in blocks of 128 × 128" in note for note in notes)
    assert main(["train", *words, "--lr", "0", "--num-rollout", "1", "--save-hf", str(tmp_path / "hf")]) == 0
    from slime_fp8.convert import from_fp8

    from_fp8(served["block"], tmp_path / "plain", torch.float32)
    assert differing(tensors(tmp_path / "hf"), tensors(tmp_path / "plain")) == []


@pytest.mark.slow
def test_several_ranks_on_ray_hand_over_the_same_bytes(cluster, served, model, chat_rows, tmp_path):
    """In several buckets. The first rank quantises; the others only take part in gathering."""
    words = [
        *grpo(served["block"], model, chat_rows, tmp_path),
        "--actor-num-gpus-per-node",
        "2",
        "--ray-address",
        "local",
    ]
    words += ["--update-weight-buffer-size", "100000", "--save-hf", str(tmp_path / "hf"), "--num-rollout", "1"]
    assert main(["train", *words]) == 0
    assert differing(tensors(served["block"]), load_file(tmp_path / "engine-0.safetensors")) == []
    converter = tensors(convert(tmp_path / "hf", tmp_path / "again", "block"))
    assert differing(converter, tensors(tmp_path / "hf" / "quantised")) == []
    assert len(differing(converter, tensors(served["block"]))) > 20


@pytest.mark.parametrize("changes", [{}, MOE], ids=["llama", "experts"])
def test_parity_with_transformers_is_that_of_the_restored_weights(chat_rows, tmp_path, capfd, changes):
    """Transformers itself reads weights wrong whose sizes blocks do not divide."""
    served = convert(small_model(tmp_path / "model", **changes), tmp_path / "served", "block")
    words = ["--hf-checkpoint", str(served), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    words += [
        "--rollout-function-path",
        "sft",
        "--loss-type",
        "sft_loss",
        "--rollout-batch-size",
        "4",
        "--num-rollout",
        "1",
    ]
    assert main(["check", *words, "--parity", "--gradients"]) == 0
    told = "".join(capfd.readouterr())
    assert all(re.search(rf"^{what} +ok ", told, re.MULTILINE) for what in ("weights", "log-probs", "gradients"))


@pytest.mark.parametrize("start", ["high precision", "restored", "in FP8"])
def test_megatron_hands_over_what_the_checkpoint_would_hold(served, model, chat_rows, tmp_path, start):
    """Whether it starts from high precision, from the checkpoint's own numbers, or trains in FP8 itself."""
    restored = start == "restored"
    pytest.importorskip("megatron.core")
    words = grpo(served["block"], None if restored else model, chat_rows, tmp_path)
    words += [
        "--train-backend",
        "megatron",
        "--lr",
        "1e-2",
        "--save-interval",
        "1",
        "--save-hf",
        str(tmp_path / "hf-{rollout_id}"),
    ]
    words += ["--save", str(tmp_path / "save"), *(FLAGS if start == "in FP8" else ())]
    assert main(["train", *words, "--num-rollout", "1" if restored else "2"]) == 0
    converter = tensors(convert(tmp_path / "hf-0", tmp_path / "again", "block"))
    assert differing(converter, tensors(tmp_path / "hf-0" / "quantised")) == []
    require_exported_alike(tmp_path)
    if not restored:
        assert differing(converter, load_file(tmp_path / "engine-1.safetensors")) == []
    first = load_file(tmp_path / "engine-0.safetensors")
    before = tensors(served["block"])
    assert not [name for name in differing(first, before) if not restored or not name.endswith("_scale_inv")]


def require_exported_alike(folder: Path) -> None:
    """`slime export` makes of the first checkpoint what --save-hf wrote with it, in high precision and in FP8."""
    assert main(["export", str(folder / "save" / "iter_0000000"), str(folder / "exported"), "--dtype", "fp32"]) == 0
    for name in ("", "quantised"):
        found, expected = (tensors(own / name) for own in (folder / "exported", folder / "hf-0"))
        assert found.keys() == expected.keys()
        assert differing(found, expected) == []


@pytest.mark.parametrize("strategy", ["block", "mxfp8"])
def test_experts_in_one_tensor_go_to_the_engine_as_the_checkpoint_has_them(chat_rows, tmp_path, strategy):
    model = small_model(tmp_path / "moe", **MOE)
    served = convert(model, tmp_path / "served", strategy)
    words = [*grpo(served, model, chat_rows, tmp_path), "--lr", "1e-2", "--save-interval", "1"]
    words += ["--save", str(tmp_path / "save"), "--save-hf", str(tmp_path / "hf-{rollout_id}")]
    assert main(["train", *words]) == 0
    engine = load_file(tmp_path / "engine-1.safetensors")
    assert "model.layers.0.mlp.experts.3.up_proj.weight_scale_inv" in engine
    converter = tensors(convert(tmp_path / "hf-0", tmp_path / "again", strategy))
    assert differing(converter, engine) == []
    assert differing(converter, tensors(tmp_path / "hf-0" / "quantised")) == []
    require_exported_alike(tmp_path)
    (first, second) = read_metrics(tmp_path / "metrics.jsonl")
    assert 1e-6 < first["train/train_rollout_logprob_abs_diff"] < 0.1
    assert [first["train/ratio"], second["train/ratio"]] == pytest.approx([1.0, 1.0], abs=1e-6)


FLAGS = ("--fp8-format", "e4m3", "--fp8-recipe", "blockwise", "--fp8-emulation")
O_PROJ = ("--fp8-modules-to-not-convert", "o_proj$")
ENDS = ("--first-last-layers-bf16",)


@pytest.mark.parametrize(
    ("converted", "trained", "problem"),
    [
        (O_PROJ, (), "training computes 3 in FP8 that it has in high precision: model.layers.0.self_attn.o_proj"),
        ((), O_PROJ, "it has 3 in FP8 that training computes in high precision: model.layers.0.self_attn.o_proj"),
        (ENDS, (), "training computes 14 in FP8 that it has in high precision: model.layers.0.mlp.down_proj"),
        ((), ENDS, "it has 14 in FP8 that training computes in high precision: model.layers.0.mlp.down_proj"),
        ((*O_PROJ, *ENDS), (*O_PROJ, *ENDS), ""),
    ],
)
def test_training_that_leaves_out_other_modules_than_the_served_checkpoint_is_refused(
    model, chat_rows, tmp_path, converted, trained, problem
):
    served = convert(model, tmp_path / "served", "block", *converted)
    words = [*grpo(served, model, chat_rows, tmp_path / "run"), *FLAGS, *trained]
    if not problem:
        assert not [note for note in planned(words).notes if "differently" in note]
        return
    with pytest.raises(ArgumentError, match=problem):
        planned(words)
    assert main(["train", *words]) != 0
    assert not list((tmp_path / "run").glob("engine-*"))


@pytest.mark.parametrize("strategy", ["block", "channel"])
@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (
            lambda entries: [*entries, "model.layers.1.mlp.up_proj"],
            "as not quantised that the files have in FP8: model.layers.1.mlp.up_proj",
        ),
        (
            lambda entries: [*entries, "re:.*(lm_head"],
            r"lists 're:\.\*\(lm_head' as not quantised, which is no regular expr",
        ),
        (lambda entries: [*entries, "re:.*layers.2.*"], "6 modules as not quantised that the files have in FP8"),
        (
            lambda entries: [e for e in entries if "o_proj" not in e],
            "3 matrices in high precision that config.json does not list",
        ),
    ],
)
def test_a_checkpoint_whose_list_differs_from_its_files_is_refused(
    model, chat_rows, tmp_path, strategy, listed, problem
):
    served = convert(model, tmp_path / "served", strategy, *O_PROJ)
    config = json.loads((served / "config.json").read_text())
    key = "modules_to_not_convert" if strategy == "block" else "ignore"
    config["quantization_config"][key] = listed(config["quantization_config"][key])
    (served / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArgumentError, match=problem):
        planned(grpo(served, model, chat_rows, tmp_path / "run"))


def test_a_recipe_that_rounds_otherwise_than_the_served_checkpoint_is_told_of(model, served, chat_rows, tmp_path):
    words = [*grpo(served["channel"], model, chat_rows, tmp_path), *FLAGS]
    assert any("round weights differently" in note and "--use-tis" in note for note in planned(words).notes)


def test_what_is_quantised_in_an_unknown_way_is_refused_with_what_would_do(served, model, chat_rows, tmp_path):
    shutil.copytree(served["block"], tmp_path / "gptq")
    config = json.loads((served["block"] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ArgumentError, match=r"quant_method 'gptq'.*known are: compressed-tensors, fp8, mxfp8.*bfloat16"
    ):
        planned(grpo(tmp_path / "gptq", model, chat_rows, tmp_path))
    without = Plugins([info for info in discover() if info.distribution != "slime-fp8"])
    with pytest.raises(ArgumentError, match=r"known are: none\. slime-fp8 brings it: pip install slime-fp8\."):
        quantised_checkpoint(str(served["block"]), without)


@pytest.mark.parametrize("change", ["gptq", "unlisted", "no plugin"])
def test_what_cannot_be_served_is_refused_within_a_second_before_torch_is_imported(model, chat_rows, tmp_path, change):
    served = convert(model, tmp_path / "served", "block", *O_PROJ)
    config = json.loads((served / "config.json").read_text())
    if change == "gptq":
        config["quantization_config"]["quant_method"] = "gptq"
    elif change == "unlisted":
        config["quantization_config"]["modules_to_not_convert"] = ["lm_head"]
    (served / "config.json").write_text(json.dumps(config))
    code = (
        "import sys, time\nfrom slime_core.cli import main\nstarted = time.process_time()\nassert main(sys.argv[1:]) != 0\n"
        "print(time.process_time() - started)\nprint([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    words = grpo(served, model, chat_rows, tmp_path / "run")
    words += ["--disable-plugin", "fp8"] if change == "no plugin" else []
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *words],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    seconds, imported = done.stdout.splitlines()[-2:]
    assert "quant_method" in done.stderr or "does not list as left out" in done.stderr
    assert imported == "[]"
    assert float(seconds) < 2.0  # 0.3 on a quiet machine


def test_weights_of_another_model_than_the_served_one_are_refused(served, model, tmp_path):
    checkpoint = quantised_checkpoint(str(served["block"]), Plugins())
    assert checkpoint is not None
    weights = tensors(model)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(TrainingError, match=rf"{name} is trained with shape \(288, 80\).*with \(288, 160\)"):
        list(quantised_like((weights | {name: weights[name][:, :80]}).items(), checkpoint))
    del weights[name]
    with pytest.raises(
        TrainingError, match=rf"weights in low precision that are not among those that are trained \(1\): {name}\."
    ):
        list(quantised_like(weights.items(), checkpoint))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tis_takes_the_bias_out_of_a_gradient_of_what_an_fp8_engine_sampled(
    served, model, chat_rows, tmp_path, strategy
):
    """Over all answers of one token, each as often as the engine gives it, the corrected gradient is that of the trainer's own
    expected reward; without the correction it is another one."""
    prompt, rewards = [5, 40, 77], torch.rand(NUM_TOKENS, generator=torch.Generator().manual_seed(1)).double()
    checkpoint = quantised_checkpoint(str(served[strategy]), Plugins())
    assert checkpoint is not None
    engine, trainer = load_restored(checkpoint, torch.float32)[0], AutoModelForCausalLM.from_pretrained(model)

    def next_log_probs(of):
        return of(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)

    with torch.no_grad():
        of_engine = next_log_probs(engine)
    (-(next_log_probs(trainer).exp() * rewards).sum()).backward()
    expected = {name: parameter.grad for name, parameter in trainer.named_parameters()}
    samples = [Sample(index=y, tokens=[*prompt, y], response_length=1) for y in range(NUM_TOKENS)]
    columns = {"advantages": NUM_TOKENS * of_engine.exp() * rewards, "rollout_log_probs": of_engine}
    of_samples = {name: [[value] for value in values.tolist()] for name, values in columns.items()}
    batch = make_train_batch(samples, mean="sample", micro_batch_size=NUM_TOKENS, columns=of_samples)
    errors = {}
    for correction in ((), ("--use-tis", "--tis-clip", "100")):
        plan = planned([*grpo(served[strategy], model, chat_rows, tmp_path), *correction])
        components = plan.components.training
        backend = components.train_backend.bind(components=components)(plan.args)
        backend.setup(components.loss, 1)
        try:
            found = dict(backend.gradients(batch))
        finally:
            backend.close()
        off = sum((found[name] - right).pow(2).sum() for name, right in expected.items())
        errors[bool(correction)] = (off / sum(right.pow(2).sum() for right in expected.values())).sqrt().item()
    print(strategy, errors)
    assert errors[True] < 1e-5
    assert errors[False] > 1e-3


def test_layers_that_are_not_trained_keep_their_bytes(served, model, tmp_path):
    """As those have that predict further tokens, which a checkpoint has behind its layers."""
    checkpoint = quantised_checkpoint(str(served["block"]), Plugins())
    assert checkpoint is not None
    weights = {name: tensor * 2 for name, tensor in tensors(model).items() if ".layers.2." not in name}
    write_quantised(tmp_path / "new", weights.items(), checkpoint)
    found, before = tensors(tmp_path / "new"), tensors(served["block"])
    assert found.keys() == before.keys()
    assert not [n for n in differing(found, before) if ".layers.2." in n]
    assert "model.norm.weight" in differing(found, before)


def test_scales_may_lie_in_another_file_than_their_weights(served, tmp_path):
    shutil.copytree(served["channel"], tmp_path / "cut")
    found = tensors(tmp_path / "cut")
    for file in (tmp_path / "cut").glob("*.safetensors"):
        file.unlink()
    scales = {name: found.pop(name) for name in list(found) if name.endswith("_scale")}
    for number, part in enumerate((scales, found)):
        save_file(part, tmp_path / "cut" / f"model-{number}.safetensors", metadata={"format": "pt"})
    models = []
    for folder in (served["channel"], tmp_path / "cut"):
        checkpoint = quantised_checkpoint(str(folder), Plugins())
        assert checkpoint is not None
        models.append(load_restored(checkpoint, torch.float32)[0].state_dict())
    assert differing(*models) == []
