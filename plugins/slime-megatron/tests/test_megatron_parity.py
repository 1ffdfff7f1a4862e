"""`slime check --parity` finds nothing where the backend is right, in every family, and names the tensor where it is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from megatron_models import FAMILIES
from megatron_parity import Check, prepare, words
from megatron_ranks import launch

pytest.importorskip("megatron.core")

TIMEOUT_S = 300
pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)

OWN = "megatron_parity:"
RIGHT = [*(Check(name) for name in FAMILIES), *(Check(name, backend="torch") for name in FAMILIES)]
PLANTED = [
    Check(
        "qwen3",
        OWN + "wrong_rope_base",
        ("rope_theta is 100000 in place of 10000", "model.layers.0.self_attn.q_proj.weight", "furthest off"),
        "log-probs",
    ),
    Check(
        "llama",
        OWN + "gate_and_up_swapped",
        ("gate and up projections", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        "log-probs",
    ),
    Check(
        "glm4_moe",
        OWN + "gate_and_up_swapped",
        ("gate and up projections", "model.layers.0.mlp.gate_proj.weight"),
        "log-probs",
    ),
    Check(
        "glm4_moe",
        OWN + "lost_router_bias",
        ("model.layers.1.mlp.gate.e_score_correction_bias (layer 1)", "does not give it"),
        "weights",
    ),
    Check(
        "qwen3",
        OWN + "wrong_epsilon",
        ("norms add 0.001 in place of 1e-05", "model.layers.0.input_layernorm.weight"),
        "log-probs",
    ),
    Check(
        "qwen3",
        OWN + "query_heads_reordered",
        ("heads of queries are in another order", "model.layers.0.self_attn.q_proj.weight"),
        "log-probs",
    ),
    Check(
        "qwen3",
        OWN + "query_heads_reordered_one_way",
        ("model.layers.0.self_attn.q_proj.weight (layer 0)", "its own numbers in another order"),
        "weights",
    ),
    Check("qwen3", OWN + "rows_leak", ("packed rows reach into each other", "self_attn"), "log-probs"),
    Check("qwen3", OWN + "gradient_doubled", ("model.layers.0.self_attn.k_norm.weight (layer 0)",), "gradients"),
    Check("qwen3", OWN + "odd_epsilon", ("layernorm", "furthest off"), "log-probs"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of every check, all of them in one process."""
    folder = tmp_path_factory.mktemp("parity")
    (found,) = launch("megatron_parity:work", ([*RIGHT, *PLANTED], folder), 1, folder, TIMEOUT_S)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("check", RIGHT, ids=str)
def test_nothing_is_found_where_the_backend_is_right(results: dict[str, Any], check: Check) -> None:
    found = results[str(check)]
    assert found["status"] == 0, found["err"]
    lines = [line.split() for line in found["out"].splitlines()]
    assert [line[0] for line in lines if line[1:2] == ["ok"]] == ["checkpoint", "weights", "log-probs", "gradients"]


@pytest.mark.slow
@pytest.mark.parametrize("check", PLANTED, ids=str)
def test_a_planted_mistake_is_found_and_the_tensor_named(results: dict[str, Any], check: Check) -> None:
    found = results[str(check)]
    assert found["status"] == 1, found["err"]
    assert f"{check.failed:<12} FAILED" in found["out"]
    for part in check.named:
        assert part in found["err"]
    assert all(word in found["err"] for word in ("given", "expected"))


TWO_RANKS = ("--actor-num-gpus-per-node", "2", "--pipeline-model-parallel-size", "2", "--gradients")
STAGES = ("--decoder-first-pipeline-num-layers", "2")


@pytest.mark.slow
def test_two_pipeline_stages_on_ray_are_compared_where_they_run(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once as it is, and once with a family of somebody's own that is wrong in the ranks alone."""
    from slime_core.cli import main

    right = Check("qwen3", options=(*TWO_RANKS, *STAGES))
    prepare([right], tmp_path)
    assert main(words(right, tmp_path)) == 0
    told = capfd.readouterr().out
    assert len(re.findall(r"training rank \d: process \d+ on", told)) == 2
    assert [line.split()[1] for line in told.splitlines() if line.startswith(("weights", "log-", "grad"))] == ["ok"] * 3
    own = ("--custom-model-provider-path", "parity_family.wrong_rope_base")
    assert main(words(replace(right, options=(*right.options, *own)), tmp_path)) == 1
    told = capfd.readouterr().err
    assert "rope_theta is 100000 in place of 10000" in told
    assert re.search(r"furthest off, .*model\.layers\.\d\.self_attn\.[qk]_(proj|norm)\.weight \(layer \d\)", told)
