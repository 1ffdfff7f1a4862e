"""`ConversationWorkers`: processes that tokenise and mask conversations beside the rollout worker (`--num-workers`), with the results,
counts, notices and errors that one process alone would have. Called by `slime_rollout_sft.rollout`.

Rows are dealt out in chunks, one at a time to each process and in turn, and come back in their order. A process ends when its pipe does, so none
outlives the run, whatever ends that.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from slime_core.data.notices import Notices
from slime_core.display import log_to_stderr
from slime_core.errors import DataError, PluginError
from slime_core.plugins import Plugins
from slime_core.plugins.discovery import Switches
from slime_core.remote_code import trust_remote_code
from slime_core.sample import Sample
from slime_rollout_sft.conversations import Conversations, Policy, with_variables

LARGEST_CHUNK = 64
"""Conversations that a process is given at once, at most."""
END_S = 5.0
"""How long a process may take to end before it is killed."""


@dataclass(frozen=True)
class Work:
    """What a process needs to complete conversations as the rollout worker would. Plain data.

    Attributes:
        loss_mask: `--loss-mask-type`.
        variables: of the chat template.
        switches: which plugins may be loaded.
        remote_code: `--trust-remote-code`.
    """

    policy: Policy
    loss_mask: str
    variables: dict[str, Any]
    switches: Switches
    remote_code: bool


@dataclass
class _Completed:
    """What became of a chunk, up to the conversation at which an error ended it."""

    samples: list[Sample | None] = field(default_factory=list)
    counts: list[Counter[str]] = field(default_factory=list)
    notices: list[list[tuple[str, str, Any]]] = field(default_factory=list)
    error: Exception | None = None


class ConversationWorkers:
    """The processes, from here to `close`.

    Args:
        count: how many.
    """

    def __init__(self, work: Work, count: int) -> None:
        self.work = work
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            here, there = socket.socketpair()
            with there:  # only the process has this end then, so that the other one says when it is gone
                self._processes.append(_started(there.fileno()))
            self._pipes.append(Connection(here.detach()))
            self._pipes[-1].send((work, os.getcwd(), sys.path))

    def complete(self, samples: Sequence[Sample], conversations: Conversations) -> Iterator[Sample | None]:
        """Yield what `Conversations.complete` makes of each sample, in their order.

        Args:
            conversations: counts and tells what it would have counted and told itself.

        Raises:
            DataError: as `Conversations.complete`, when its place in the order has come.
            PluginError: a process has ended.
        """
        size = max(1, min(LARGEST_CHUNK, -(-len(samples) // len(self._pipes))))
        chunks = [samples[start : start + size] for start in range(0, len(samples), size)]
        is_done = False
        try:
            for number, chunk in enumerate(chunks[: len(self._pipes)]):
                self._send(number, chunk)
            for number in range(len(chunks)):
                found = self._receive(number)
                if (following := number + len(self._pipes)) < len(chunks):
                    self._send(following, chunks[following])
                for sample, counts, notices in zip(found.samples, found.counts, found.notices, strict=True):
                    conversations.take(counts, notices)
                    yield sample
                if found.error is not None:
                    raise found.error
            is_done = True
        finally:
            if not is_done:  # answers may be under way that nobody waits for
                self.close()

    def _send(self, number: int, chunk: Sequence[Sample]) -> None:
        try:
            self._pipes[number % len(self._pipes)].send(chunk)
        except OSError:
            raise self._ended(number) from None

    def _receive(self, number: int) -> _Completed:
        try:
            found: _Completed = self._pipes[number % len(self._pipes)].recv()
        except (EOFError, OSError):
            raise self._ended(number) from None
        return found

    def _ended(self, number: int) -> PluginError:
        process = self._processes[number % len(self._processes)]
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        return PluginError(
            f"A process of --num-workers that tokenises conversations has ended (exit code {process.poll()}); what it wrote stands above. "
            "It may have been out of memory; --num-workers 0 does without such processes."
        )

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._pipes, self._processes = [], []

    @property
    def is_open(self) -> bool:
        """Whether there are processes."""
        return bool(self._pipes)


class _Recorded(Notices):
    """Notices that are told later, by the process that tells them once for all."""

    def __init__(self) -> None:
        super().__init__(lambda sentence: None)
        self.calls: list[tuple[str, str, Any]] = []
        self._seen: set[Any] = set()

    def message_keys(self, source: str, names: set[str]) -> None:
        self._record(("message_keys", source, frozenset(names)), (source.rpartition(":")[0], frozenset(names)))

    def once(self, about: str, sentence: str) -> None:
        self._record(("once", about, sentence), about)

    def _record(self, call: tuple[str, str, Any], about: Any) -> None:
        if about not in self._seen:
            self._seen.add(about)
            self.calls.append(call)


def _started(end: int) -> subprocess.Popen[bytes]:
    """A process that serves this end of a pipe, apart from a person's Ctrl-C: whoever has the other end says when it is over."""
    command = [sys.executable, "-P", "-c", f"from slime_rollout_sft.workers import serve; serve({end})"]
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=[end], start_new_session=True, env={**os.environ, **own}
    )


def serve(end: int) -> None:
    """Complete chunks until the pipe ends, and end this process. The body of a process."""
    pipe = Connection(end)
    with suppress(EOFError, OSError):
        work, folder, import_path = pipe.recv()
        chunk: Sequence[Sample] = pipe.recv()
        sys.path[:] = import_path
        os.chdir(folder)
        log_to_stderr()
        logging.getLogger().setLevel(logging.WARNING)
        recorded = _Recorded()
        try:
            trust_remote_code(work.remote_code)
            selected = Plugins(switches=work.switches).select("loss_mask", work.loss_mask, "--loss-mask-type")
            conversations = Conversations(work.policy, with_variables(selected, work.variables), recorded)
        except Exception as error:
            pipe.send(_Completed(error=_sendable(error)))
            return
        while True:
            pipe.send(_completed(conversations, recorded, chunk))
            chunk = pipe.recv()
    os._exit(0)  # nothing here is worth the seconds that a tidy end takes


def _completed(conversations: Conversations, recorded: _Recorded, chunk: Sequence[Sample]) -> _Completed:
    found = _Completed()
    for sample in chunk:
        conversations.counts, recorded.calls = Counter(), []
        try:
            done = conversations.complete(sample)
        except Exception as error:
            found.error = _sendable(error)
            break
        if done is not None:
            done.compact()
        found.samples.append(done)
        found.counts.append(conversations.counts)
        found.notices.append(recorded.calls)
    return found


def _sendable(error: Exception) -> Exception:
    """The error as it can go through a pipe: what cannot be pickled of it is told in words."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return DataError(f"{type(error).__name__}: {error}")
    return error
