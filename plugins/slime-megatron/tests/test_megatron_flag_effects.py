"""Options of the Megatron backend that act: on two data-parallel ranks, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slime_core.free_port import FreePort

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `megatron_flag_runs.py` finds on two data-parallel ranks: {what was asked for: what came of it}."""
    port = FreePort("127.0.0.1")
    folder = tmp_path_factory.mktemp("flags")
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.number)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "megatron_flag_runs.py"), str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(errors)[-4000:]
    told: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return told


def test_recomputation_and_overlap_change_no_number(runs: dict[str, Any]) -> None:
    steps = {name: run["steps"] for name, run in runs["runs"].items()}
    assert len(steps) == 10
    for name, found in steps.items():
        assert found == [pytest.approx(values, rel=1e-6) for values in steps["plain"]], name


@pytest.mark.parametrize("part", ["core_attn", "mlp", "moe", "shared_experts", "mla_up_proj"])
def test_the_parts_that_are_named_are_computed_again_and_only_they(part: str, runs: dict[str, Any]) -> None:
    within = {"moe": {"moe", "shared_experts"}}.get(part, {part})
    assert {name for name, calls in runs["runs"][part]["calls"].items() if calls == 2} == within
    assert set(runs["runs"]["plain"]["calls"].values()) == {1}


@pytest.mark.parametrize("method", ["full", "block"])
def test_whole_layers_are_computed_again(method: str, runs: dict[str, Any]) -> None:
    again = {name for name, calls in runs["runs"][method]["calls"].items() if calls == 2}
    first_layer = {"core_attn", "mla_up_proj", "mlp"}
    assert again == (first_layer if method == "block" else first_layer | {"moe", "shared_experts"})


def test_overlap_cuts_gradients_into_parts_that_travel_early(runs: dict[str, Any]) -> None:
    assert runs["runs"]["plain"]["buckets"] < runs["runs"]["overlap"]["buckets"]


def test_the_state_of_an_optimizer_in_host_memory_is_on_the_device_in_steps_alone(runs: dict[str, Any]) -> None:
    in_steps, kept = {"inside": ["cpu", "cpu"]}, {"not asked for": ["cpu"], "step": ["cpu"]}
    assert runs["offload"] == {**in_steps, **kept, "outside": ["meta"]}


def test_shared_prompts_are_computed_for_each_sample(runs: dict[str, Any]) -> None:
    apart, shared = runs["log-probs"]
    assert shared == [pytest.approx(sample, rel=1e-5) for sample in apart]


def test_a_model_that_is_closed_is_freed_and_its_ranks_part(runs: dict[str, Any]) -> None:
    assert runs["closed"] == {"freed": True, "ranks together": False}


def test_a_backend_that_is_set_up_refuses_contradictions_and_what_needs_a_gpu(runs: dict[str, Any]) -> None:
    assert "--rotary-base is 7" in runs["refused"]["rotary_base"]
    assert "--optimizer-cpu-offload needs a GPU" in runs["refused"]["optimizer_cpu_offload"]
    assert "--attention-dropout is 0.5" in runs["refused"]["attention_dropout"]
