"""Hooks cannot end a run in silence: what no `except Exception` sees is an error of the hook that raised it."""

from __future__ import annotations

import asyncio

import pytest

from slime_core.cli import main
from slime_core.errors import PluginError
from slime_core.plugins import Plugins
from slime_core.sample import Sample

RAISED = {
    "SystemExit(0)": "sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "GeneratorExit": "raise GeneratorExit",
    "CancelledError": "raise asyncio.CancelledError",
}


def selected(tmp_path, monkeypatch, kind, definition, name):
    module = f"exits_{abs(hash((definition, name)))}"
    (tmp_path / f"{module}.py").write_text(f"import asyncio, sys\n{definition}")
    monkeypatch.syspath_prepend(tmp_path)
    return Plugins([]).select(kind, f"{module}.it", "--custom-rm-path")


@pytest.mark.parametrize("how", RAISED)
@pytest.mark.parametrize("function", ["def", "async def"])
def test_what_would_end_the_program_is_an_error_of_the_hook(tmp_path, monkeypatch, function, how):
    reward = selected(tmp_path, monkeypatch, "reward", f"{function} it(args, sample): {RAISED[how]}", how)

    async def call():
        result = reward(None, Sample(index=0))
        return await result

    with pytest.raises(PluginError, match="which would end the run in silence") as caught:
        asyncio.run(call())
    assert how.partition("(")[0] in str(caught.value)
    assert "reward" in caught.value.__notes__[0]


def test_a_hook_whose_task_is_cancelled_is_not_at_fault(tmp_path, monkeypatch):
    reward = selected(
        tmp_path, monkeypatch, "reward", "async def it(args, sample): await asyncio.sleep(60)", "cancelled"
    )

    async def call():
        task = asyncio.ensure_future(reward(None, Sample(index=0)))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call())

    async def call_and_wait():
        await asyncio.wait_for(reward(None, Sample(index=0)), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(call_and_wait())


def test_a_coroutine_that_is_told_to_end_by_its_loop_is_not_at_fault(tmp_path, monkeypatch):
    reward = selected(tmp_path, monkeypatch, "reward", "async def it(args, sample): await asyncio.sleep(60)", "closed")
    loop = asyncio.new_event_loop()
    task = loop.create_task(reward(None, Sample(index=0)))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    assert task.cancelled()


@pytest.mark.parametrize("how", ["SystemExit(0)", "GeneratorExit", "CancelledError"])
@pytest.mark.parametrize("place", ["when it is called", "when its module is imported"])
def test_a_run_ends_with_an_error_that_names_the_hook(sft, tmp_path, monkeypatch, capsys, how, place):
    module = f"ends_{abs(hash((how, place)))}"
    body = RAISED[how] if place == "when it is called" else "pass"
    top = "" if place == "when it is called" else f"{RAISED[how]}\n"
    (tmp_path / f"{module}.py").write_text(f"import asyncio, sys\n{top}def loss(args, inputs): {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", *sft, "--loss-type", "custom_loss", "--custom-loss-function-path", f"{module}.loss"]
    assert main(words) not in (0, None)
    said = capsys.readouterr().err
    assert how.partition("(")[0] in said
    assert module in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "body",
    [
        "out = sft_loss(args, inputs); return replace(out, loss=out.loss.detach())",
        "with torch.no_grad(): return sft_loss(args, inputs)",
        "return LossOutputs(torch.tensor(sft_loss(args, inputs).loss.item()))",
    ],
)
def test_a_loss_without_a_gradient_is_an_error_of_the_loss(sft, tmp_path, monkeypatch, capsys, body):
    module = f"flat_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(
        "import torch\nfrom dataclasses import replace\nfrom slime_core.contracts.loss import LossOutputs\n"
        f"from slime_losses.sft import sft_loss\ndef loss(args, inputs):\n    {body}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", *sft, "--loss-type", "custom_loss", "--custom-loss-function-path", f"{module}.loss"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "It returned a loss without a gradient, from which nothing is learned" in said
    assert f"{module}.loss" in said
