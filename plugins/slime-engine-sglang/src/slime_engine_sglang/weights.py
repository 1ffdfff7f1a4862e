"""`SGLangWeightSender`: takes a new version of the weights to all servers. The engine makes it; it runs in the first
training rank.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slime_core.tensors.weight_buckets import in_buckets
from slime_engine_sglang import snapshot
from slime_engine_sglang.checkpoint_names import as_in_files
from slime_engine_sglang.control import ControlClient, PendingCalls, call_all, control_clients
from slime_engine_sglang.errors import SGLangError, Unreachable, UnsupportedCall
from slime_engine_sglang.keys import NO_KEYS, Keys
from slime_engine_sglang.samples import WeightSamples
from slime_engine_sglang.transports import BODY_BYTES, Backend, GroupTransport, Piece, TensorTransport, Transport

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.contracts.engine import WeightSender

logger = logging.getLogger(__name__)


@dataclass
class SGLangWeightSender:
    """Sends weights. It can be pickled until it is first used.

    Attributes:
        urls: the addresses of all servers.
        checkpoint: the run's Hugging Face checkpoint, whose configuration copies of the weights get.
        folder: the folder for copies of the newest weights, which is shared with the servers.
        transport: the value of `--update-weight-transport`.
        ranks: the number of tensor-parallel ranks of each server, by its address; 1 where there is none.
        on_gpu: whether the servers compute on GPUs; None: if the trainer does.
        shares_gpus: servers and trainer compute on the same GPUs. NCCL makes no group of two processes on one GPU, so
            that gloo takes its place, through host memory.
        piece_bytes: how many bytes of weights travel in one piece.
        pause_mode: the value of `--pause-generation-mode`.
        tolerant: leave out servers that do not answer; the fleet starts them again with the weights in `folder`.
        checks_equal: the value of `--check-weight-update-equal`.
        keys: that the servers want to be shown.
    """

    urls: list[str]
    checkpoint: str
    folder: Path
    transport: Literal["nccl", "tensor", "disk"]
    ranks: Mapping[str, int] = field(default_factory=dict)
    on_gpu: bool | None = False
    shares_gpus: bool = False
    piece_bytes: int = 512 * 2**20
    pause_mode: Literal["in_place", "retract"] = "in_place"
    tolerant: bool = True
    checks_equal: bool = False
    keys: Keys = NO_KEYS
    _transport: Transport | None = field(default=None, init=False, repr=False)

    def send(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights of all servers; returns when they are in use and have been verified.

        Requests that are running go on under the new weights. The iterator is always read to its end, since other ranks
        take part in what it computes.

        Args:
            weights: (Hugging Face name, whole tensor) pairs.
            version: the number of the version, which the servers report with every token.

        Raises:
            SGLangError: no server answers, one refuses, or one has other weights afterwards.
        """
        given = iter(weights)
        rest = as_in_files(given, self.checkpoint)
        try:
            # A server answers no health check while it is paused, loads a copy or adds up its weights.
            with (
                control_clients(self.urls, self.keys) as servers,
                snapshot.mark_updating(self.folder) if self.tolerant else contextlib.nullcontext(),
            ):
                self._send(self._answering(servers), servers, rest, version)
        finally:
            for _ in given:
                pass

    def close(self) -> None:
        """Leave the process group."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def group_backend(self) -> Backend:
        """Return what makes the process group of the transport "nccl"."""
        import torch

        on_gpu = torch.cuda.is_available() if self.on_gpu is None else self.on_gpu
        return "nccl" if on_gpu and not self.shares_gpus else "gloo"

    def _send(
        self,
        living: list[ControlClient],
        servers: Sequence[ControlClient],
        weights: Iterator[tuple[str, Tensor]],
        version: int,
    ) -> None:
        """Replace the weights.

        Args:
            living: the servers that answer now.
            servers: all servers. One that answers only later loads the copy on disk.
        """
        keeps_copy = self.tolerant or self.transport == "disk"
        copy = snapshot.Snapshot(self.folder, self.checkpoint, version) if keeps_copy else None
        samples = WeightSamples()
        size = min(self.piece_bytes, BODY_BYTES) if self.transport == "tensor" else self.piece_bytes
        pieces = (samples.take(piece) for piece in in_buckets(weights, size))
        loaded = self._overwrite(living) if self.checks_equal and version == 0 else {}
        try:
            if self.transport == "disk":
                assert copy is not None
                for piece in pieces:
                    copy.add(piece)
                path: Path | None = copy.publish()
                with self._paused(living):
                    self._load(living, path, version)
            else:
                with self._paused(living):
                    arrived = self._transfer(living, pieces, copy, version)
                    path = copy.publish() if copy is not None else None
                    if not arrived:
                        self._load(self._answering(living), path, version)
        except BaseException:
            if copy is not None:
                copy.discard()
            raise
        # A server that was not there at first reads the copy when it starts, or now.
        verified = self._answering(servers)
        if late := [server for server in verified if server.version() != version]:
            with self._paused(late):
                self._load(late, path, version)
        self._require_as_before(verified, loaded)
        self._verify(verified, samples, version)

    def _transfer(
        self, living: Sequence[ControlClient], pieces: Iterator[Piece], copy: snapshot.Snapshot | None, version: int
    ) -> bool:
        """Send all pieces to the servers, and add them to the copy. Return False if a server failed on the way, but
        there is a copy that it can load."""
        transport = self._transport = self._transport or self._make_transport()
        try:
            with _on_the_way():
                transport.open(living, snapshot.start_counts(self.folder))
            with _update_session(living):
                try:
                    for piece in pieces:
                        if copy is not None:
                            copy.add(piece)
                        with _on_the_way():
                            transport.send(living, piece, version)
                except BaseException:
                    self.close()  # a server that waits for the rest of a broadcast would not hear that the session ends
                    raise
        except SGLangError as error:  # not one of the trainer, whose weights are not all there then
            self.close()
            if copy is None:
                raise
            logger.warning(
                "weights of version %d did not get through; the servers load them from disk: %s", version, error
            )
            for piece in pieces:
                copy.add(piece)
            return False
        return True

    def _make_transport(self) -> Transport:
        if self.transport == "tensor":
            return TensorTransport(self.ranks)
        return GroupTransport(self.ranks, self.group_backend())

    def _load(self, servers: Sequence[ControlClient], path: Path | None, version: int) -> None:
        """Let these servers load the copy on disk.

        Raises:
            SGLangError: there is no copy, or a server does not load it.
        """
        if not servers:
            return
        if path is None:
            named = ", ".join(server.url for server in servers)
            raise SGLangError(f"After an update to version {version}, these servers have other weights: {named}.")
        body = {"model_path": str(path.resolve()), "weight_version": str(version), "flush_cache": False}
        self._settle(call_all(servers, "/update_weights_from_disk", body))

    @contextlib.contextmanager
    def _paused(self, servers: Sequence[ControlClient]) -> Iterator[None]:
        """Return a context in which no server generates. At its end, servers forget what they computed of prompts with
        the old weights, except for requests that are running."""
        try:
            self._settle(call_all(servers, "/pause_generation", {"mode": self.pause_mode}))
            yield
            for server, error in call_all(servers, "/flush_cache").errors().items():
                if error is not None and not isinstance(error, Unreachable):
                    logger.warning(
                        "%s keeps what the old weights computed of prompts, because requests are running",
                        server.url,
                    )
        finally:
            self._settle(call_all(servers, "/continue_generation"))

    def _verify(self, servers: Sequence[ControlClient], samples: WeightSamples, version: int) -> None:
        """Compare what the servers have with what was sent.

        Raises:
            SGLangError: it differs.
        """
        for server in servers:
            if (found := server.version()) != version and not (self.tolerant and found is None):
                raise SGLangError(f"{server.url} has weights of version {found} after an update to {version}.")
            with self._leaving_out_the_gone():
                samples.compare(server)
        if self.checks_equal and len(servers) > 1:
            sums: dict[str, list[Any]] = {}
            for server in servers:
                with self._leaving_out_the_gone():
                    sums[server.url] = _checksums(server)
            first = next(iter(sums), "")
            if different := [url for url, found in sums.items() if found != sums[first]]:
                raise SGLangError(f"{', '.join(different)} have other weights than {first} (checksums differ).")

    def _overwrite(self, servers: Sequence[ControlClient]) -> dict[str, list[Any]]:
        """Have servers put random numbers in place of their weights. Return the checksums of what they had loaded, by their addresses."""
        loaded = {}
        for server in servers:
            with self._leaving_out_the_gone():
                loaded[server.url] = _checksums(server)
                server.call("/weights_checker", {"action": "reset_tensors"})
        return loaded

    def _require_as_before(self, servers: Sequence[ControlClient], loaded: Mapping[str, list[Any]]) -> None:
        """Compare what servers have now with what they had loaded.

        Raises:
            SGLangError: it differs.
        """
        for server in (server for server in servers if server.url in loaded):
            with self._leaving_out_the_gone():
                ranks = zip(_checksums(server), loaded[server.url], strict=True)
                others = sorted({name for now, before in ranks for name in now if now[name] != before.get(name)})
                if others:
                    raise SGLangError(
                        f"--check-weight-update-equal: after the first update {server.url} has other weights than --hf-checkpoint, which it "
                        f"had loaded, in {len(others)} tensors, such as {others[0]}. They did not arrive, or the trainer began with others "
                        "(such as --load without a training state)."
                    )

    def _answering(self, servers: Sequence[ControlClient]) -> list[ControlClient]:
        """Return the servers that answer.

        Raises:
            Unreachable: one that must be there does not answer, or none does.
        """
        found = [server for server in servers if server.answers()]
        if not found or (len(found) < len(servers) and not self.tolerant):
            missing = ", ".join(server.url for server in servers if server not in found)
            raise Unreachable(f"SGLang servers do not answer, so they cannot be given weights: {missing}.")
        return found

    def _leaving_out_the_gone(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that ends at a server which does not answer, if tolerant: it is left to the fleet."""
        return contextlib.suppress(Unreachable) if self.tolerant else contextlib.nullcontext()

    def _settle(self, calls: PendingCalls) -> None:
        """Wait for all servers, and raise the error of one. If tolerant, servers that do not answer are left to the
        fleet."""
        for error in calls.errors().values():
            if error is not None and not (self.tolerant and isinstance(error, Unreachable)):
                raise error


@contextlib.contextmanager
def _on_the_way() -> Iterator[None]:
    """Return a context whose errors, such as those of torch's process groups, are raised as `SGLangError`."""
    try:
        yield
    except RuntimeError as error:
        raise SGLangError(f"Weights did not get through: {error}") from error


@contextlib.contextmanager
def _update_session(servers: Sequence[ControlClient]) -> Iterator[None]:
    """Return a context in which SGLang accepts weights; older versions need none. A server that has begun ends it in any case: it
    begins no second one."""
    errors = call_all(servers, "/begin_weight_update").errors()
    begun = [server for server, error in errors.items() if error is None]
    ended: list[BaseException | None] = []
    try:
        for error in errors.values():
            if error is not None and not isinstance(error, UnsupportedCall):
                raise error
        yield
    finally:
        ended = list(call_all(begun, "/end_weight_update").errors().values())
    for error in ended:
        if error is not None:
            raise error


def _checksums(server: ControlClient) -> list[Any]:
    """Return the checksums of each rank of a server.

    Raises:
        SGLangError: the server tells none.
    """
    answer = server.call("/weights_checker", {"action": "checksum"})
    found = [rank.get("checksums") for rank in answer.get("ranks") or []]
    if not all(found) or not found:
        raise SGLangError(
            f"--check-weight-update-equal: {server.url} tells no checksums of its weights (/weights_checker answered {str(answer)[:200]})."
        )
    return found


if TYPE_CHECKING:  # type checkers compare the class with the contract
    _sender: type[WeightSender] = SGLangWeightSender
