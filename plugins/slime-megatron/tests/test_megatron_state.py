"""The training state: the same in every layout, the same when it is written in the background, and whole or not there.

States are compared tensor by tensor, weights and moments, by a reader that knows nothing of megatron-core.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_cases import Case
from megatron_models import FAMILIES, make_model, save
from megatron_ranks import launch

from slime_core.cli import main
from slime_megatron.torch_dist import TorchDistFolder

pytest.importorskip("megatron.core")

TIMEOUT_S = 300
pytestmark = pytest.mark.timeout(2 * TIMEOUT_S + 60)

FIRST = {"decoder_first_pipeline_num_layers": 1}
DENSE = [
    Case("qwen3", tensor=2, sequence=True),
    Case("qwen3", pipeline=2, options=FIRST),
    Case("qwen3", data=2),
]
EXPERTS = [
    Case("glm4_moe_lite", tensor=2, expert=2, sequence=True),
    Case("glm4_moe_lite", pipeline=2, options=FIRST),
    Case("glm4_moe_lite", data=2, expert=2),
    Case("glm4_moe_lite", tensor=2, sequence=True),
]
CHAINS = [DENSE, EXPERTS]
MODELS = (*FAMILIES, "glm4_moe_lite, whole queries", "qwen3_moe, not normalised", "qwen3, tied, 4 layers")
ROUNDS = 6
WHOLE = Case("glm4_moe_lite", data=2, expert=2, distributed=False)
OTHERS = {
    "--expert-model-parallel-size": Case("glm4_moe_lite", data=2, distributed=False),
    "--use-distributed-optimizer": Case("glm4_moe_lite", data=2, expert=2),
    "": WHOLE,
}
"""What a state of `WHOLE` is loaded into, by the option that the refusal names; itself is not refused."""
_ADAM = {"adam_beta1": 0.5, "adam_beta2": 0.6, "adam_eps": 0.1, "weight_decay": 0.3}
CHANGES: dict[str, tuple[Case, dict[str, Any]]] = {
    "one state per rank": (Case("qwen3", distributed=False), _ADAM),
    "cut over ranks": (Case("qwen3"), _ADAM),
    "sgd": (Case("qwen3", distributed=False, options={"optimizer": "sgd"}), {"sgd_momentum": 0.5, "weight_decay": 0.3}),
}
"""What is saved, and the options that are others when it is loaded."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in MODELS:
        save(make_model(name), folder / name)
    return folder


@pytest.fixture(scope="module")
def two_ranks(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(what each of two ranks found, the folder with what they wrote)."""
    folder = tmp_path_factory.mktemp("two ranks")
    case = Case("qwen3", tensor=2, sequence=True)
    refusals = (WHOLE, [case for case in OTHERS.values() if case is not WHOLE])
    found = launch("megatron_state_runs:both", (case, CHAINS, refusals, checkpoints, folder), 2, folder, TIMEOUT_S)
    assert [rank["error"] for rank in found if "error" in rank] == []
    return found, folder


@pytest.fixture(scope="module")
def one_rank(checkpoints: Path, two_ranks: Any) -> Any:
    """What one process found: in states that two ranks wrote, in checkpoints that were converted, while it was killed."""
    _, folder = two_ranks
    cases = [(Case(cases[0].model), folder / f"chain {number}" / "0") for number, cases in enumerate(CHAINS)]
    for model in ("qwen3", "glm4_moe_lite"):
        convert = ["convert", "hf-to-torch-dist", "--hf-checkpoint", str(checkpoints / model)]
        assert main([*convert, "--save", str(folder / f"{model} converted")]) == 0
    killed = folder / "killed"
    killed.mkdir()
    jobs = {
        "kill_while_saving": (checkpoints, killed, ROUNDS),
        "alone": (cases, checkpoints),
        "momentum": (checkpoints, folder / "momentum"),
        "settings": (CHANGES, checkpoints, folder / "settings"),
        "names": (list(MODELS), checkpoints),
        "read_by_megatron": ("qwen3", folder / "qwen3 converted", checkpoints),
        "initial_weights": initial_weights(folder, checkpoints),
    }
    (found,) = launch("megatron_state_runs:one_process", (jobs,), 1, folder, TIMEOUT_S)
    assert "error" not in found, found["error"]
    return found


def initial_weights(folder: Path, checkpoints: Path) -> Any:
    """The arguments of `megatron_state_runs.initial_weights`: folders for --ref-load, and whose weights they have."""
    state, exported = folder / "chain 1" / "0", folder / "exported"
    model = "glm4_moe_lite"
    convert = ["convert", "torch-dist-to-hf", "--input-dir", str(state), "--output-dir", str(exported)]
    assert main([*convert, "--origin-hf-dir", str(checkpoints / model)]) == 0
    given = {"converted": folder / f"{model} converted", "state of two ranks": state, "exported": exported}
    expected = {"converted": checkpoints / model, "state of two ranks": exported, "exported": exported}
    return model, {what: str(path) for what, path in given.items()}, checkpoints, expected


def differing(first: Path, second: Path) -> list[str]:
    """The tensors that are not bit for bit the same in two states, or only in one; and the number of steps."""
    one, two = TorchDistFolder(first), TorchDistFolder(second)
    assert any("exp_avg_sq" in name for name in one.tensors), "there are no moments"
    either = sorted(one.tensors.keys() ^ two.tensors.keys())
    both = sorted(one.tensors.keys() & two.tensors.keys())
    steps = [torch.load(folder / "common.pt", weights_only=False)["step"] for folder in (first, second)]
    return [
        *either,
        *(n for n in both if not torch.equal(one.read(n), two.read(n))),
        *([] if len(set(steps)) == 1 else ["step"]),
    ]


@pytest.mark.parametrize(
    ("chain", "number"), [(n, k) for n, cases in enumerate(CHAINS) for k in range(1, len(cases))], ids=lambda v: str(v)
)
def test_a_state_is_the_same_in_weights_and_moments_after_it_went_through_another_layout(
    chain: int, number: int, two_ranks: Any
) -> None:
    _, folder = two_ranks
    assert differing(folder / f"chain {chain}" / "0", folder / f"chain {chain}" / str(number)) == []


def test_a_state_has_the_bias_that_chooses_experts(two_ranks: Any) -> None:
    _, folder = two_ranks
    names = [name for name in TorchDistFolder(folder / "chain 1" / "0").tensors if name.endswith("router.expert_bias")]
    assert len(names) == 2


@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_training_goes_on_with_the_same_losses_in_every_layout(chain: int, two_ranks: Any, one_rank: Any) -> None:
    (first, _), folder = two_ranks
    losses = [*first[f"chain {chain}"].values(), one_rank["alone"][str(folder / f"chain {chain}" / "0")]]
    assert len(losses) == len(CHAINS[chain]) + 1
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], abs=2e-6)
    assert losses[0][0] != losses[0][1]


@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_one_process_reads_the_state_of_two_ranks(chain: int, two_ranks: Any, one_rank: Any) -> None:
    _, folder = two_ranks
    assert differing(folder / f"chain {chain}" / "0", folder / f"chain {chain}" / "alone") == []


def test_a_state_written_in_the_background_is_that_of_the_moment_when_it_was_saved(two_ranks: Any) -> None:
    found, folder = two_ranks
    for rank in found:
        background = rank["background"]
        assert background["writing when training goes on"] is False
        assert len(background["losses while it is written"]) == 1
        assert background["written"] == [True, True]
    assert differing(folder / "at once", folder / "in the background") == []
    names = {path.name for path in (folder / "at once").iterdir()}
    assert {path.name for path in (folder / "in the background").iterdir()} == names


def test_a_state_is_made_of_the_same_files_with_every_megatron_core(two_ranks: Any) -> None:
    files = {path.name for path in (two_ranks[1] / "at once").iterdir()}
    tensors = {f"__{rank}_{number}.distcp" for rank in range(2) for number in range(2)}
    assert files == {".metadata", "metadata.json", "common.pt", "random_00000.pt", "random_00001.pt", *tensors}


def test_one_process_writes_in_the_background_and_none_is_left_over(two_ranks: Any) -> None:
    for rank in two_ranks[0]:
        background = rank["background"]
        assert background["children after saving at once"] == []
        assert background["one child at a time"] == 1
        assert background["children when it is written"] == background["children when it is given up"] == []
        assert background["it is gone"] is True


@pytest.mark.parametrize("when", ["at once", "in the background"])
def test_what_keeps_one_rank_from_writing_is_raised_on_all(when: str, two_ranks: Any) -> None:
    found, folder = two_ranks
    said = [rank["background"][f"refused {when}"] for rank in found]
    assert "Is a directory" in said[0]
    assert said[1] != "no error"
    assert not (folder / f"refused {when}" / ".metadata").exists()
    assert [rank["background"]["after an error"] for rank in found] == [True, True]
    assert differing(folder / "after an error", folder / "after an error") == []


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_process_that_is_killed_while_it_saves_leaves_the_checkpoint_before_and_nothing_that_runs(
    number: int, one_rank: Any
) -> None:
    found = one_rank["kill_while_saving"][str(number)]
    assert found["gone on by"] > 0  # from the checkpoint that the one before left
    assert found["newest"] == 0
    assert found["left over"] == []


def test_processes_were_killed_in_the_middle_of_a_save(one_rank: Any) -> None:
    assert any(found["in the middle"] for found in one_rank["kill_while_saving"].values())


@pytest.mark.parametrize("model", MODELS)
def test_the_weights_of_a_model_are_known_without_building_it(model: str, one_rank: Any) -> None:
    assert one_rank["names"][model] == []


def test_megatron_itself_reads_a_converted_checkpoint(one_rank: Any) -> None:
    assert one_rank["read_by_megatron"] == {"differing": [], "layers": 3}


@pytest.mark.parametrize("what", ["converted", "state of two ranks", "exported"])
def test_a_run_can_start_from_the_weights_of_a_torch_dist_folder(what: str, one_rank: Any) -> None:
    assert one_rank["initial_weights"][what] == []


@pytest.mark.parametrize("option", OTHERS)
def test_a_state_that_cannot_be_read_is_refused_with_the_option_that_it_is_about(option: str, two_ranks: Any) -> None:
    for rank in two_ranks[0]:
        said = rank["refused"][str(OTHERS[option])]
        assert option in said
        assert bool(said) is bool(option)


@pytest.mark.slow
def test_a_state_goes_through_layouts_of_four_ranks(checkpoints: Path, tmp_path: Path) -> None:
    cases = [
        Case("glm4_moe_lite", tensor=2, data=2, expert=2, sequence=True),
        Case("glm4_moe_lite", pipeline=2, data=2, expert=2, options=FIRST),
        Case("glm4_moe_lite", tensor=2, data=2, expert=4, sequence=True),
    ]
    found = launch("megatron_state_runs:chain", (cases, checkpoints, tmp_path), 4, tmp_path, TIMEOUT_S)
    assert [rank["error"] for rank in found if "error" in rank] == []
    losses = list(found[0].values())
    assert losses[1:] == [pytest.approx(losses[0], abs=2e-6)] * 2
    assert [differing(tmp_path / "0", tmp_path / str(number)) for number in (1, 2)] == [[], []]


def test_the_momenta_of_sgd_are_loaded(one_rank: Any) -> None:
    found = one_rank["momentum"]
    assert found["resumed"] == found["unbroken"]
    assert len(set(found["unbroken"])) == len(found["unbroken"]), "the weights move"


@pytest.mark.parametrize("change", CHANGES)
def test_options_of_the_optimizer_that_are_others_in_a_resumed_run_act(change: str, one_rank: Any) -> None:
    found = one_rank["settings"][change]
    assert found["loaded"] == found["asked"]
    assert found["steps"] == 1
    told = {"momentum": 0.5} if change == "sgd" else {"betas": [0.5, 0.6], "eps": 0.1}
    assert [{key: group[key] for key in told} for group in found["loaded"]] == [told] * len(found["loaded"])


WRITES = """
import os, signal, sys
from slime_megatron.saving import _write_and_end

def write():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    print("written", flush=True)

parent = os.getpid()
if (child := os.fork()) == 0:
    _write_and_end(parent, write)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_process_that_writes_is_not_ended_by_what_is_sent_to_the_whole_run() -> None:
    done = subprocess.run([sys.executable, "-c", WRITES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "written\n"), done.stderr
