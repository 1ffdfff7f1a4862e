"""What megatron-core gets wrong in silence: each fault is planted here by taking away its cure, and seen by the comparison with
transformers; or what leads to it is refused by name.

The faults themselves, and what has to be looked at in the ranks, are in `megatron_faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytest
from megatron_cases import Case, differences, prepare
from megatron_models import FAMILIES, LR, make_arguments, make_batch, make_config
from megatron_ranks import launch
from megatron_truth import STEPS, Truth

from slime_core.errors import ArgumentError
from slime_megatron.arguments import MegatronArguments
from slime_megatron.refusals import refused

pytest.importorskip("megatron.core")

TIMEOUT_S = 240
pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)

FORWARD = {"log_probs", "entropies", "loss", "metrics"}
BACKWARD = {"gradients", "norms", "weights"}
LATENT = "glm4_moe_lite"


@dataclass(frozen=True)
class Trap:
    """A fault, and what shows it.

    Attributes:
        wrong: what the comparison finds wrong, on at least one rank.
        right: what it finds right all the same, on every rank.
        names: parts of the names of all parameters whose gradients are most wrong; none: any.
        before: the version of megatron-core that does it right by itself, so that nothing is wrong without the cure.
    """

    case: Case
    wrong: frozenset[str] | set[str]
    right: frozenset[str] | set[str] = frozenset()
    names: tuple[str, ...] = ()
    before: tuple[int, int] | None = None

    @property
    def shows(self) -> bool:
        """Whether the megatron-core that is installed has the fault."""
        return self.before is None or tuple(map(int, version("megatron-core").split(".")[:2])) < self.before

    def __str__(self) -> str:
        return self.case.fault.partition(":")[2]


def planted(fault: str, model: str, **options: Any) -> Case:
    """A case of two ranks with a fault of `megatron_faults`."""
    return Case(model, fault=f"megatron_faults:{fault}", **options)


TRAPS = [
    # The rows of what is known to be wrong in silence, in their order; the rows without a line have tests of their own below.
    Trap(planted("mean_over_micro_batches_and_alias", "qwen3", data=2), {"losses", *BACKWARD}, FORWARD),
    Trap(
        planted("rotary_key_gradients_not_summed", LATENT, tensor=2, expert=2, sequence=True),
        BACKWARD,
        FORWARD,
    ),
    Trap(
        planted("rotary_key_gradients_summed_by_megatron", f"{LATENT}, dense", tensor=2),
        BACKWARD,
        FORWARD,
        before=(0, 19),
    ),
    Trap(
        planted(
            "layout_not_checked",
            "qwen3_moe",
            tensor=2,
            sequence=True,
            options={"expert_tensor_parallel_size": 1},
        ),
        BACKWARD,
        FORWARD,
        ("local_experts",),
        before=(0, 19),
    ),
    Trap(planted("latent_norms_summed", f"{LATENT}, dense", tensor=2), BACKWARD, FORWARD, ("q_layernorm",)),
    Trap(planted("parameters_alone", LATENT, data=2, expert=2), {"loaded", *FORWARD, *BACKWARD}),
    Trap(planted("rope_type_not_given", LATENT, data=2, expert=2), {*FORWARD, *BACKWARD}, {"loaded"}),
    Trap(planted("experts_not_scaled", LATENT, data=2, expert=2), {*FORWARD, *BACKWARD}, {"loaded"}),
    Trap(planted("router_bias_moves", LATENT, data=2, expert=2), {"weights"}, {"gradients", *FORWARD}),
    Trap(planted("mean_over_micro_batches", "qwen3", data=2), BACKWARD, FORWARD),
    Trap(
        planted("split_weights_not_marked", "qwen3", tensor=2),
        {"norms", "losses", "weights"},
        {"gradients", *FORWARD},
        before=(0, 19),
    ),
]
CONTROLS = [
    Case(LATENT, data=2, expert=2),
    planted("no_experts_in_the_layout", f"{LATENT}, dense", tensor=2),
    planted("outputs_freed", "qwen2", pipeline=2),  # wrong with virtual stages alone, which are not offered
    Case(f"{LATENT}, eps 1e-3 in all norms", data=2, expert=2),
]
ANOTHER_EPSILON = Case(f"{LATENT}, eps 1e-3", data=2, expert=2)
CASES = [*(trap.case for trap in TRAPS), *CONTROLS, ANOTHER_EPSILON]

Results = tuple[Callable[[Case], Truth], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What transformers computes for a case, and what the two ranks found in all."""
    folder = tmp_path_factory.mktemp("traps")
    for case in CASES:
        prepare(case, folder)
    ordered = sorted(CASES, key=lambda case: case.layout)
    found = launch("megatron_faults:probe", (ordered, folder), 2, folder, TIMEOUT_S)
    return lambda case: Truth.read(folder / case.truth), found


def wrong(results: Results, case: Case) -> list[dict[str, Any]]:
    """What is wrong on each rank."""
    truth, found = results
    assert all(str(case) in rank for rank in found), found[0].get("error")
    return [differences(truth(case), rank[str(case)]) for rank in found]


@pytest.mark.slow
@pytest.mark.parametrize("trap", TRAPS, ids=str)
def test_a_planted_fault_is_seen(results: Results, trap: Trap) -> None:
    found = wrong(results, trap.case)
    seen = {name for rank in found for name in rank}
    if not trap.shows:
        assert seen == set()
        return
    assert trap.wrong <= seen
    assert not trap.right & seen
    gradients = {name: by for rank in found for name, by in rank.get("gradients", {}).items()}
    large = [name for name, by in gradients.items() if by > 0.5]
    assert all(any(part in name for part in trap.names) for name in large) or not trap.names
    assert large or not trap.names


@pytest.mark.slow
@pytest.mark.parametrize("case", CONTROLS, ids=str)
def test_nothing_is_seen_where_nothing_is_wrong(results: Results, case: Case) -> None:
    assert wrong(results, case) == [{}, {}]


def test_the_rotary_keys_projection_is_among_what_learns_from_half_of_its_gradient(results: Results) -> None:
    for trap in (trap for trap in TRAPS[1:3] if trap.shows):
        found = wrong(results, trap.case)
        off = {name: by for rank in found for name, by in rank["gradients"].items()}
        assert max(by for name, by in off.items() if name.endswith("linear_kv_down_proj.weight")) > 1e-3


def test_the_norms_of_latents_get_a_doubled_gradient_and_no_other_parameter_does(results: Results) -> None:
    (trap,) = (trap for trap in TRAPS if str(trap) == "latent_norms_summed")
    for rank in wrong(results, trap.case):
        assert rank["gradients"] == pytest.approx(
            {f"decoder.layers.{n}.self_attention.q_layernorm.weight": 1.0 for n in range(3)}, rel=1e-4
        )


def test_the_bias_that_chooses_experts_moves_in_every_step_unless_it_is_held(results: Results) -> None:
    (trap,) = (trap for trap in TRAPS if str(trap) == "router_bias_moves")
    for rank in wrong(results, trap.case):
        moved = [by for name, by in rank["weights"].items() if name.endswith("e_score_correction_bias")]
        assert moved == pytest.approx([STEPS * 1e-3 / LR] * 2, rel=1e-3)
    (held,) = (case for case in CONTROLS if case.model == LATENT)
    for rank in results[1]:
        weights = rank[str(held)]["weights"]
        assert {by for name, by in weights.items() if name.endswith("e_score_correction_bias")} == {0.0}


def test_latent_norms_have_the_epsilon_of_the_configuration_as_engines_do_and_transformers_does_not(
    results: Results,
) -> None:
    """transformers gives these norms 1e-6 whatever the configuration says. With the configuration's in all of them, as SGLang
    and vLLM have it, megatron-core is equal to it (see the controls)."""
    for rank in wrong(results, ANOTHER_EPSILON):
        assert 1e-5 < rank["log_probs"] < 1e-2


def test_the_reported_loss_is_not_what_the_schedule_divides(results: Results) -> None:
    truth, found = results
    kept, aliased = (
        found[0][str(trap.case)]["losses"][0]
        for name in ("mean_over_micro_batches", "mean_over_micro_batches_and_alias")
        for trap in TRAPS
        if str(trap) == name
    )
    assert kept == pytest.approx(truth(TRAPS[0].case).loss, abs=1e-6)
    assert aliased == pytest.approx(kept / 2)  # each rank has two micro-batches


def test_training_goes_on_from_a_checkpoint_as_without_one(results: Results) -> None:
    for rank in results[1]:
        assert rank["resumed"] == {"right": True, "planted": False}, rank.get("error")


def test_routers_of_a_bfloat16_model_choose_in_float32(results: Results) -> None:
    for rank in results[1]:
        assert rank["rerouted"]["right"] == 0.0
        assert rank["rerouted"]["planted"] > 1e-3


def test_expert_parallel_ranks_with_different_numbers_of_micro_batches_would_wait_for_ever(results: Results) -> None:
    for rank in results[1]:
        assert rank["hangs"] == {"right": False, "planted": True}, rank.get("error")


def test_ranks_are_never_given_different_numbers_of_micro_batches() -> None:
    with pytest.raises(ValueError, match="3 micro-batches cannot be dealt to 2 ranks evenly"):
        make_batch({}, ranks=2, rows=((0, 1), (2,), (3, 4, 5, 6, 7))).of_rank(0, 2)


def test_settings_that_would_be_wrong_in_silence_are_never_left_to_megatron_core(results: Results) -> None:
    for rank in results[1]:
        assert rank["settings"] == {
            "fp8": None,
            "fp4": None,
            "virtual_pipeline_model_parallel_size": None,
            "deallocate_pipeline_outputs": False,
            "calculate_per_token_loss": True,
            "moe_router_dtype": "fp32",
            "moe_router_bias_update_rate": 0.0,
            "moe_aux_loss_coeff": 0.0,
            "moe_router_load_balancing_type": "none",
            "rope_type": "rope",
            "rotary_scaling_factor": 1.0,
            "moe_token_dispatcher_type": "alltoall",
            "variable_seq_lengths": True,
            "moe_grouped_gemm": False,
        }


@pytest.mark.parametrize("word", ["fp8", "fp4"])
def test_there_is_no_option_that_would_be_ignored_without_transformer_engine(word: str) -> None:
    assert not [name for name in MegatronArguments.model_fields if word in name]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_layers_per_virtual_pipeline_stage": 1}, "need micro-batches of one length"),
        ({"moe_router_bias_update_rate": 1e-3}, "would move in every step"),
        ({"moe_aux_loss_coeff": 1e-3}, "is not trained here"),
        ({"moe_token_dispatcher_type": "allgather"}, "cannot take packed rows of different lengths"),
    ],
    ids=str,
)
def test_options_that_would_be_wrong_in_silence_are_refused(options: dict[str, Any], why: str) -> None:
    (found,) = refused(make_arguments(**options))
    assert found.startswith(f"--{next(iter(options)).replace('_', '-')}")
    assert why in found


def test_experts_that_are_copied_to_tensor_parallel_ranks_are_refused() -> None:
    from slime_megatron.layout import ParallelLayout

    args = make_arguments(tensor_model_parallel_size=2, expert_tensor_parallel_size=1, sequence_parallel=True)
    with pytest.raises(ArgumentError, match="never adds up the gradients of the experts' copies"):
        ParallelLayout.of(args, ranks=2, experts=8)


@pytest.mark.parametrize(
    ("model", "changes", "why"),
    [
        (LATENT, {"rope_interleave": False}, "rope_interleave is false"),
        (LATENT, {"norm_topk_prob": False}, "norm_topk_prob is false"),
        (LATENT, {"num_experts_per_tok": 1}, "num_experts_per_tok is 1"),
        ("deepseek_v3", {"topk_group": 1}, "ranks groups by their best 2 experts, megatron-core by their best 4"),
    ],
)
def test_routing_and_rotation_that_megatron_core_does_otherwise_are_refused(
    model: str, changes: dict[str, Any], why: str
) -> None:
    from slime_megatron.families import FAMILIES as KNOWN
    from slime_megatron.spec import ConfigReader

    assert model in FAMILIES
    reader = ConfigReader(make_config(model, **changes).to_dict(), "tiny")
    with pytest.raises(ArgumentError, match=why):
        KNOWN[reader.model_type](reader, lambda size: size)
