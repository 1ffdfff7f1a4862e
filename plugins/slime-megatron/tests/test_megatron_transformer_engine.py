"""Transformer Engine: whether it is there is found out before anything is loaded, and what its layers call their weights.

It is never there in these tests. Broken packages of its name take its place; names are those that megatron-core's layers have
with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from megatron_models import FAMILIES, make_arguments, make_config

from slime_core.errors import ArgumentError
from slime_megatron import te_layers, te_probe
from slime_megatron.families import FAMILIES as KNOWN
from slime_megatron.names import Names, as_in_rules
from slime_megatron.refusals import refused, remarks
from slime_megatron.spec import ConfigReader, ModelSpec

ASKED = "transformer_engine"
Package = Callable[[str], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Installs a package transformer_engine whose `pytorch` consists of the given lines."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    te_probe.probe.cache_clear()

    def install(lines: str) -> None:
        folder = tmp_path / "transformer_engine"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "pytorch.py").write_text(lines)

    yield install
    te_probe.probe.cache_clear()


META = 'raise RuntimeError("Found empty `transformer-engine` meta package.\\n  Install it with framework extensions.")'
BROKEN = {
    META: "RuntimeError: Install it with framework extensions.",
    'raise OSError("libcudnn.so.9: cannot open shared object file")': "OSError: libcudnn.so.9: cannot open shared object file.",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "importing it ended Python with SIGSEGV.",
    "import sys; sys.exit(3)": "SystemExit: 3.",
}
"""{what the package does: what is told of it}: megatron-core cannot be imported with any of them."""
MISSING = {
    "import a_library_that_is_not_there": "ModuleNotFoundError: No module named 'a_library_that_is_not_there'.",
    'raise ImportError("undefined symbol: _ZN3c10")': "ImportError: undefined symbol: _ZN3c10.",
}
"""The same; megatron-core goes on without Transformer Engine."""


@pytest.mark.parametrize("lines", BROKEN)
def test_a_half_installed_transformer_engine_is_told_of_whoever_asks(lines: str, package: Package) -> None:
    package(lines)
    for asked in (None, "local", ASKED):
        told = te_probe.refusal(asked) or ""
        assert BROKEN[lines] in told
        assert "pip uninstall transformer-engine" in told
        assert told.startswith("--transformer-impl" if asked == ASKED else "--train-backend megatron")


@pytest.mark.parametrize("lines", MISSING)
def test_one_that_megatron_core_goes_on_without_is_told_of_only_where_it_is_asked_for(
    lines: str, package: Package
) -> None:
    package(lines)
    assert te_probe.refusal(None) is te_probe.refusal("local") is None
    told = te_probe.refusal(ASKED) or ""
    assert MISSING[lines] in told
    assert "pip install" in told
    assert "leave the option out" in told


def test_one_that_works_needs_a_gpu(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    package("")
    assert te_probe.probe() == te_probe.Probe()
    assert te_probe.refusal(None) is None
    assert "needs a CUDA device, and torch sees none" in (te_probe.refusal(ASKED) or "")


def test_where_none_is_installed_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    te_probe.probe.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", None)
    assert te_probe.refusal(None) is None
    assert "it is not installed" in (te_probe.refusal(ASKED) or "")
    te_probe.probe.cache_clear()


def test_it_is_tried_once_in_a_process(package: Package, tmp_path: Path) -> None:
    package(f"open({str(tmp_path / 'tries')!r}, 'a').write('.')")
    assert te_probe.probe() is te_probe.probe()
    assert (tmp_path / "tries").read_text() == "."


@pytest.mark.parametrize(("command", "unloaded"), {"check": {"megatron"}, "train": {"torch", "megatron"}}.items())
def test_a_run_is_refused_in_one_line_before_anything_is_loaded(
    command: str, unloaded: set[str], package: Package, tmp_path: Path
) -> None:
    """`check` says whatever else is wrong as well, which it needs torch for."""
    package(META)
    words = ["--train-backend", "megatron", "--hf-checkpoint", "nowhere", "--prompt-data", "nowhere"]
    words += ["--rollout-batch-size", "8", "--num-rollout", "1"]
    program = (
        "import sys; from slime_core.cli import main; code = main(sys.argv[1:]);"
        f"assert not {unloaded} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, *words], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2, done.stderr
    [told] = [line for line in done.stderr.splitlines() if "Transformer Engine" in line]
    assert "Transformer Engine is installed without something that it needs" in told
    assert "RuntimeError: Install it with framework extensions." in told
    assert "Traceback" not in done.stderr


def test_a_training_rank_asks_before_megatron_core_is_imported(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slime_megatron.backend import MegatronBackend

    package(META)
    monkeypatch.setattr("slime_megatron.device.prepare", None)  # comes before the first import of megatron-core
    with pytest.raises(ArgumentError, match="Install it with framework extensions"):
        MegatronBackend(make_arguments()).setup(lambda args, inputs: None, 1)  # type: ignore[arg-type, return-value]


def test_on_a_cluster_of_somebody_elses_the_ranks_alone_are_asked(package: Package) -> None:
    package(META)
    assert not refused(make_arguments(ray_address="head:6379"))
    assert len(refused(make_arguments(ray_address="local"))) == 1


# ------------------------------------------------------------------------------------------------------- other options

WITH_ITS_LAYERS: list[dict[str, Any]] = [
    {"rope_fusion": True},
    {"use_precision_aware_optimizer": True},
    {"recompute_granularity": "selective", "recompute_modules": ["layernorm"]},
    {"recompute_granularity": "selective", "recompute_modules": ["moe_act"], "moe_grouped_gemm": True},
]
WITHOUT_EFFECT_ON_OTHERS = [{"attention_backend": "flash"}, {"moe_grouped_gemm": True}, {"moe_permute_fusion": True}]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Transformer Engine worked, on a GPU."""
    monkeypatch.setattr("slime_megatron.te_probe.probe", lambda: te_probe.Probe(cuda=True))


@pytest.mark.parametrize("options", WITH_ITS_LAYERS, ids=str)
def test_options_that_need_its_layers_are_taken_with_them_alone(options: dict[str, Any], there: None) -> None:
    assert refused(make_arguments(transformer_impl=ASKED, **options)) == []
    for other in (None, "local"):
        (told,) = refused(make_arguments(transformer_impl=other, **options))
        assert "--transformer-impl transformer_engine" in told


@pytest.mark.parametrize("options", WITHOUT_EFFECT_ON_OTHERS, ids=str)
def test_options_that_other_layers_do_without_have_an_effect_with_its_layers(
    options: dict[str, Any], there: None
) -> None:
    flag = "--" + next(iter(options)).replace("_", "-")
    assert refused(make_arguments(transformer_impl=ASKED, **options)) == []
    assert remarks(make_arguments(transformer_impl=ASKED, **options)) == []
    assert [flag in told for told in remarks(make_arguments(transformer_impl="local", **options))] == [True]


@pytest.mark.parametrize(
    "options",
    [
        {"attention_backend": "local"},
        {"use_precision_aware_optimizer": True, "use_distributed_optimizer": False},
        {"use_precision_aware_optimizer": True, "optimizer": "sgd"},
        {"use_precision_aware_optimizer": True, "optimizer_cpu_offload": True},
    ],
    ids=str,
)
def test_what_its_layers_cannot_do_is_refused(options: dict[str, Any], there: None) -> None:
    (told,) = refused(make_arguments(transformer_impl=ASKED, **options))
    assert told.startswith("--" + next(iter(options)).replace("_", "-"))


# ----------------------------------------------------------------------------------------------------- models and names

REFUSED = {"gemma2": "norms with weights around zero", "glm4": "norms behind attention and MLP"}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_its_layers_do_not_compute_are_refused_with_what_they_have(family: str) -> None:
    spec, alone, args = spec_of(family), SimpleNamespace(tensor=1, sequence=False), make_arguments()
    if family in REFUSED:
        with pytest.raises(ArgumentError, match=REFUSED[family]):
            te_layers.require_expressible(spec, alone, args)
        return
    te_layers.require_expressible(spec, alone, args)
    te_layers.require_expressible(spec, SimpleNamespace(tensor=2, sequence=True), args)
    if spec.latent:
        with pytest.raises(ArgumentError, match="rotary keys would not be summed"):
            te_layers.require_expressible(spec, SimpleNamespace(tensor=2, sequence=False), args)
        with pytest.raises(ArgumentError, match="knows YaRN alone"):
            te_layers.require_expressible(spec, alone, make_arguments(rope_fusion=True))


def spec_of(name: str) -> ModelSpec:
    reader = ConfigReader(make_config(name).to_dict(), "tiny")
    return KNOWN[reader.model_type](reader, lambda size: size)


def with_its_layers(rule: str, spec: ModelSpec) -> list[str]:
    """What weights are called in its layers that the rules call so, in the first layer and of the second expert: dense layers
    compute the norm before the MLP with it, and so does attention unless it is latent; that has its latent norms within the
    projections that follow. Experts may be computed one by one, or together."""
    name = rule.format(layer=0, expert=1)
    if name.endswith("0.input_layernorm.weight") and not spec.latent:
        return ["decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"]
    if name.endswith("0.pre_mlp_layernorm.weight"):
        return ["decoder.layers.0.mlp.linear_fc1.layer_norm_weight", name]
    for x in ("q", "kv") if spec.latent else ():
        if name.endswith(f".{x}_layernorm.weight"):
            return [f"decoder.layers.0.self_attention.linear_{x}_up_proj.layer_norm_weight"]
    for x in ("linear_fc1", "linear_fc2"):
        if name.endswith(f"local_experts.1.{x}.weight"):
            return [name, f"decoder.layers.0.mlp.experts.{x}.weight1"]
    return [name]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_its_layers_has_the_rule_of_the_same_weight_in_other_layers(family: str) -> None:
    spec = spec_of(family)
    names = Names(spec.rules)
    others = 0
    for rule in spec.rules:
        for name in with_its_layers(rule.megatron, spec):
            assert names.of(as_in_rules(name))[0] is rule
            others += as_in_rules(name) != name
    assert others >= 2
