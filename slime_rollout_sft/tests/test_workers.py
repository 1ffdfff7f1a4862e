"""Processes of --num-workers complete conversations as the rollout worker would alone, and end with the run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from slime_core.data import GlobalDataSource
from slime_core.data.notices import Notices
from slime_core.errors import DataError, PluginError
from slime_core.plugins import Plugins
from slime_core.sample import RESERVED
from slime_rollout_sft import rollout as sft
from slime_rollout_sft.arguments import SftArguments

MASKS = """\
from slime_core.errors import DataError
from slime_core.contracts.data import MaskedTokens

def marked(tokenizer, messages, tools):
    if any("unrenderable" in message["content"] for message in messages):
        raise DataError("the template does not know what to do with it")
    text = " ".join(message["content"] for message in messages)
    ids = tokenizer(text)["input_ids"]
    return MaskedTokens(ids, [n % 3 > 0 for n in range(len(ids))] if len(ids) > 3 else [0] * len(ids), counts={"seen": 1})
"""


def row(number: int) -> dict[str, Any]:
    """A conversation; every seventh has nothing to train, every eleventh no generator can render, some have a key that nobody reads, and
    some tools in their metadata."""
    words = "w1 w2" if number % 7 == 0 else " ".join(f"w{number % 40}" for _ in range(number + 4))
    answer = {"role": "assistant", "content": words + (" unrenderable" if number % 11 == 10 else "")}
    metadata = {"tools": [{"name": "look"}]} if number % 5 == 0 else {"number": number}
    messages = [{"role": "user", "content": "w3"}, answer | ({"note": 1} if number in (5, 9) else {})]
    return {"messages": messages, "metadata": metadata}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`run(args, source)`: the next rollout of a run that lasts as long as the tests of this file."""
    plugins = Plugins()
    with ExitStack() as at_end:

        def rollout(args: Any, source: GlobalDataSource, components: Any, own: ExitStack | None = None) -> Any:
            end = at_end if own is None else own
            return sft.generate_rollout(args, 0, source, components=components(args), plugins=plugins, at_end=end)

        yield rollout
        processes = sft._of_runs[at_end]._processes
        assert [process.poll() for process in processes] == [None, None]
    assert [process.poll() for process in processes] == [0, 0]


@pytest.fixture
def arguments(default_arguments: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`arguments(**changes)`: those of a run over sixty rows; the folder is the same in all tests."""
    folder = tmp_path_factory.getbasetemp() / "conversation-workers"
    if not folder.exists():
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        folder.mkdir()
        tokenizer = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(["<unk>", *(f"w{i}" for i in range(40))])}, "<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", chat_template="{{ messages }}"
        ).save_pretrained(folder)
        (folder / "worker_masks.py").write_text(MASKS)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(60)))
    monkeypatch.syspath_prepend(folder)

    def make(**changes: Any) -> Any:
        own = {"hf_checkpoint": str(folder), "loss_mask_type": "worker_masks.marked", "rollout_batch_size": 20}
        own |= {
            "metadata_key": "metadata",
            "malformed_row": "skip",
            "no_trainable_token": "skip",
            "input_key": "messages",
            "num_workers": 2,
        }
        return default_arguments(folder / "rows.jsonl", groups=[SftArguments], **{**own, **changes})

    return make


def test_rollouts_of_processes_are_those_of_one(
    arguments: Any, components: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rollouts(workers: int) -> tuple[Any, ...]:
        said: list[str] = []
        notices = Notices(said.append)
        monkeypatch.setattr("slime_rollout_sft.conversations._notices", lambda policy: notices)
        args = arguments(num_workers=workers, n_samples_per_prompt=2)
        source = GlobalDataSource(args)
        made = [run(args, source, components) for _ in range(3)]
        return (
            [[s.to_dict() for s in one.samples] for one in made],
            [one.metrics for one in made],
            source.state_dict(),
            said,
        )

    alone, together = rollouts(0), rollouts(2)
    assert together == alone
    assert alone[1][0].keys() >= {"skipped_no_trainable_token", "skipped_malformed", "seen"}
    assert len([sentence for sentence in alone[3] if "note" in sentence]) == 1
    tools = [sample["metadata"].get("tools") and sample["metadata"][RESERVED].get("tools") for sample in alone[0][0]]
    assert [{"type": "function", "function": {"name": "look"}}] in tools
    assert tools[::2] == tools[1::2]


def test_an_error_is_that_of_the_first_row_that_has_one(arguments: Any, components: Any, run: Any) -> None:
    found = []
    for workers in (0, 1):
        args = arguments(num_workers=workers, malformed_row="error", rollout_batch_size=30)
        with ExitStack() as own, pytest.raises(DataError) as error:
            run(args, GlobalDataSource(args), components, own)
        found.append((str(error.value), getattr(error.value, "__notes__", None)))
    assert found[0] == found[1]
    assert "rows.jsonl:11" in found[0][0]


def test_a_process_that_has_ended_is_named(arguments: Any, components: Any, run: Any) -> None:
    args = arguments(rollout_batch_size=2, num_workers=1)
    with ExitStack() as own:
        source = GlobalDataSource(args)
        run(args, source, components, own)
        (process,) = sft._of_runs[own]._processes
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(PluginError, match=r"--num-workers that .*exit code -9"):
            run(args, source, components, own)
