"""What this distribution registers fits the contracts, and its options refuse what contradicts itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.readers import options_read, unknown_names, without_effect
from slime_core.arguments.resolve import Resolved, resolve
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.plugins.registry import contract_problems
from slime_core.testing import check_distribution
from slime_losses import plugin

PROVIDED = {
    "loss": plugin.slime_losses(),
    "advantage": plugin.slime_advantages(),
    "importance_weight": plugin.slime_importance_weights(),
    "reward_post_process": plugin.slime_reward_post_processes(),
}
POLICIES = ("policy_loss", "gspo", "cispo")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, found in PROVIDED.items() for name in found])
def test_every_component_fits_its_contract(kind: str, name: str) -> None:
    selected = Plugins().select(kind, name)
    assert contract_problems(kind, selected.target) == []
    assert (selected.target.__doc__ or "").strip()
    assert PROVIDED[kind][name].summary


def test_the_distribution_passes_the_contract_kit() -> None:
    check_distribution("slime-losses")


def test_the_importance_weight_is_bound_where_it_is_asked_for() -> None:
    plugins = Plugins()
    weight = plugins.select("importance_weight", "icepop")
    assert all("importance_weight" in plugins.select("loss", n).bind(importance_weight=weight).bound for n in POLICIES)
    assert not plugins.select("loss", "value_loss").bind(importance_weight=weight).bound


def test_listing_components_and_options_imports_no_torch() -> None:
    code = "import sys, slime_losses.plugin as p; p.slime_losses(); p.slime_argument_groups(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


def test_every_component_says_what_it_reads_and_every_option_is_read(plugins: Plugins) -> None:
    model = Namespace(plugins).model
    declared = [lazy.reads_options for found in PROVIDED.values() for lazy in found.values()]
    assert None not in declared
    assert [unknown_names(names or (), model) for names in declared] == [[]] * len(declared)
    own = {name for group in plugin.slime_argument_groups() for name in group.model_fields}
    assert own - {name for names in declared for name in options_read(names or (), model)} == set()


def resolved(tmp_path: Path, *words: str) -> Any:
    return everything(tmp_path, *words).args


def everything(tmp_path: Path, *words: str) -> Resolved:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"input": "1 + 1"}\n')
    required = ["--hf-checkpoint", str(tmp_path), "--prompt-data", str(data), "--rollout-batch-size", "1"]
    return resolve(Namespace(Plugins()), [*required, "--num-rollout", "1", *words], env={})


def test_defaults_are_slimes(tmp_path: Path) -> None:
    args = resolved(tmp_path)
    assert (args.eps_clip, args.eps_clip_high, args.eps_clip_c, args.value_clip) == (0.2, None, None, 0.2)
    assert (args.use_kl_loss, args.kl_loss_coef, args.kl_loss_type, args.kl_coef) == (False, 0.0, "k1", 0.0)
    assert (args.entropy_coef, args.gamma, args.lambd, args.normalize_advantages) == (0.0, 1.0, 1.0, False)
    assert (args.use_tis, args.tis_clip, args.tis_clip_low) == (False, 2.0, 0.0)
    assert (args.disable_grpo_std_normalization, args.disable_rewards_normalization) == (False, False)


OVERLONG = ["--custom-reward-post-process-path", "dapo_overlong", "--overlong-buffer-len", "9"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps-clip", "0.3", "--eps-clip-high", "0.2"], "--eps-clip-high 0.2 is below --eps-clip 0.3"),
        (["--eps-clip-c", "0.5"], "greater than 1"),
        (["--advantage-estimator", "cispo", "--eps-clip-c", "3"], "--eps-clip-c has no meaning for CISPO"),
        (["--tis-clip", "0.5", "--tis-clip-low", "0.5"], "must be less than --tis-clip"),
        (["--use-tis", "--use-rollout-logprobs"], "Give only one of them"),
        (["--use-kl-loss", "--kl-loss-coef", "0.1", "--kl-coef", "0.1"], "give only one of them"),
        (["--kl-loss-type", "k4"], "--kl-loss-type"),
        (["--gamma", "1.5"], "--gamma"),
        (["--critic-lr", "1e-7", "--min-lr", "1e-6", "--lr", "1e-5"], "--min-lr 1e-06 is above --critic-lr 1e-07"),
        (
            ["--custom-reward-post-process-path", "dapo_overlong", "--rollout-max-response-len", "1000"],
            "Try --overlong-buffer-len 250",
        ),
        (
            [*OVERLONG, "--advantage-estimator", "my.own"],
            "does not know how the one of --advantage-estimator my.own does it. It shapes rewards for grpo, gspo, ",
        ),
        (
            [*OVERLONG, "--custom-advantage-function-path", "my.own"],
            "does not know how the one of --custom-advantage-function-path my.own does it.",
        ),
    ],
)
def test_contradictions_are_errors_with_advice(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        resolved(tmp_path, *words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--eps-clip", "0.2", "--eps-clip-high", "0.28", "--eps-clip-c", "3"],
        ["--advantage-estimator", "cispo", "--eps-clip", "1", "--eps-clip-high", "0.3"],
        ["--loss-type", "cispo", "--eps-clip", "1", "--eps-clip-high", "0.3"],
        ["--use-kl-loss", "--kl-loss-coef", "0.00", "--kl-loss-type", "low_var_kl", "--kl-coef", "0.00"],
        ["--advantage-estimator", "reinforce_plus_plus", "--normalize-advantages", "--kl-coef", "0.1"],
        ["--overlong-buffer-len", "5000", "--rollout-max-response-len", "1000"],
        [*OVERLONG, "--advantage-estimator", "reinforce_plus_plus_baseline"],
        [*OVERLONG, "--custom-advantage-function-path", "rloo"],
        [*OVERLONG, "--advantage-estimator", "my.own", "--disable-compute-advantages-and-returns"],
        ["--custom-reward-post-process-path", "my.dapo_overlong", "--advantage-estimator", "my.own"],
    ],
)
def test_what_slime_takes_is_taken(tmp_path: Path, words: list[str]) -> None:
    resolved(tmp_path, *words)


GRPO = [("loss", "policy_loss"), ("advantage", "grpo")]
PLUS = [("loss", "policy_loss"), ("advantage", "reinforce_plus_plus")]


@pytest.mark.parametrize(
    ("words", "selected", "said"),
    [
        (["--kl-loss-coef", "0.1"], GRPO, "--kl-loss-coef has no effect without --use-kl-loss"),
        (["--kl-loss-type", "k2"], GRPO, "--kl-loss-type has no effect without --use-kl-loss"),
        (["--tis-clip", "3"], GRPO, "--tis-clip has no effect without --use-tis"),
        (
            ["--eps-clip", "0.3"],
            [("loss", "sft_loss")],
            "--eps-clip has no effect: it is read by the loss 'policy_loss'",
        ),
        (["--gamma", "0.9"], GRPO, "--gamma has no effect: it is read by the advantage 'reinforce_plus_plus'"),
        (["--kl-coef", "0.1"], GRPO, "--kl-coef has no effect: it is read by the advantage 'reinforce_plus_plus'"),
        (["--value-clip", "0.5"], GRPO, "--value-clip has no effect: it is read by the loss 'value_loss'"),
        (
            ["--overlong-penalty-factor", "2"],
            GRPO,
            "--overlong-penalty-factor has no effect: it is read by the reward_post_process 'dapo_overlong'",
        ),
        (["--use-kl-loss", "--kl-loss-coef", "0.1", "--kl-loss-type", "k3"], GRPO, None),
        (["--kl-coef", "0.1", "--kl-loss-type", "k2", "--gamma", "0.9"], PLUS, None),
        (["--use-tis", "--tis-clip", "3", "--eps-clip", "0.1"], GRPO, None),
    ],
)
def test_an_option_without_effect_is_reported(
    plugins: Plugins, tmp_path: Path, words: list[str], selected: list[tuple[str, str]], said: Any
) -> None:
    chosen = [plugins.select(kind, name) for kind, name in selected]
    found = without_effect(everything(tmp_path, *words), chosen, plugins)
    mine = [text for text in found if text.split()[0] in words]
    assert [text[: len(said)] for text in mine] == [said] if said else mine == []
