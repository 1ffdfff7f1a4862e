"""What a person sees of a run on the terminal: what says how it goes, and nothing that says nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from slime_core.run.console import told_of_evaluation, told_of_training

STEP = {"train/loss": -4.6e-10, "train/lr": 1e-5, "train/grad_norm": 1.087}
REWARDED = {
    "train/pg_loss": -4.6e-10,
    "rollout/raw_reward": 0.25,
    "rollout/response_len/mean": 11.04,
    "rollout/truncated_ratio": 0.2083,
}


def test_a_step_of_fine_tuning_is_told_by_its_loss():
    assert told_of_training({**STEP, "train/loss": 1.69887}) == ["loss 1.6989", "lr 1.00e-05", "grad norm 1.09"]


def test_a_step_of_reinforcement_learning_is_told_by_reward_lengths_and_divergence_instead_of_its_loss():
    told = told_of_training({**STEP, **REWARDED, "train/ppo_kl": 0.0, "train/train_rollout_kl": 0.00378})
    assert told[:4] == ["reward 0.250", "length 11", "truncated 21%", "KL to engine 0.0038"]
    assert told[4:] == ["lr 1.00e-05", "grad norm 1.09"]


def test_of_several_divergences_that_from_the_reference_is_told():
    told = told_of_training({**STEP, **REWARDED, "train/kl_loss": 0.02, "train/train_rollout_kl": 0.00378})
    assert "KL to reference 0.02" in told
    assert not any("engine" in part for part in told)


def test_an_evaluation_is_told_without_what_hooks_did_not_do():
    metrics = {"eval/sums/reward": 0.5, "eval/hooks/reward/failures": 2.0, "eval/hooks/reward/dropped": 0.0}
    lengths = {"eval/sums/response_len/mean": 11.35, "eval/sums/response_len/min": 7.0, "perf/eval_time": 3.0}
    told = told_of_evaluation({**metrics, **lengths})
    assert told == ["sums/reward 0.5000", "hooks/reward/failures 2.0000", "sums/response_len/mean 11.3500"]


def test_libraries_draw_no_progress_bars_and_what_is_no_warning_is_a_plain_line():
    script = """
        import logging
        from slime_core.display import log_to_stderr, tell_plainly

        tell_plainly()
        log_to_stderr()
        logging.getLogger("slime_core.x").info("waiting")
        logging.getLogger("slime_core.x").warning("too late")
        logging.getLogger("httpx").info("GET /")
        from huggingface_hub.utils import are_progress_bars_disabled
        print(are_progress_bars_disabled())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert done.stderr == "waiting\nWARNING slime_core.x: too late\n"
