"""`WeightSender`: takes a new version of the weights to all servers. Made by the engine, run inside training rank 0."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slime_engine_sglang import snapshot
from slime_engine_sglang.control import Asked, Control, Gone, Unsupported, ask_all, controls
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.transports import BODY_BYTES, GroupTransport, Piece, TensorTransport, Transport

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass
class WeightSender:
    """Sends weights. Picklable until it is first used.

    Attributes:
        urls: of all servers.
        checkpoint: the run's Hugging Face checkpoint, for its configuration.
        folder: for the newest weights; shared with the servers.
        transport: see `--update-weight-transport`.
        ranks: tensor-parallel ranks of a server.
        on_gpu: where the servers compute; None: like the trainer.
        shares_gpus: servers and trainer compute on the same GPUs. NCCL makes no group of two processes on one GPU, so that
            gloo takes its place, through host memory.
        piece_bytes: weights that travel in one piece.
        pause_mode: see `--pause-generation-mode`.
        tolerant: leave out servers that do not answer; the fleet starts them again with the weights in `folder`.
        compare_servers: see `--check-weight-update-equal`.
    """

    urls: list[str]
    checkpoint: str
    folder: Path
    transport: Literal["nccl", "tensor", "disk"]
    ranks: int = 1
    on_gpu: bool | None = False
    shares_gpus: bool = False
    piece_bytes: int = 512 * 2**20
    pause_mode: Literal["in_place", "retract"] = "in_place"
    tolerant: bool = True
    compare_servers: bool = False
    _way: Transport | None = field(default=None, init=False, repr=False)

    def send(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights of all servers; returns when they are in use and have been verified.

        Requests that are running go on under the new weights. The iterator is always read to its end, since other ranks
        take part in what it computes.

        Args:
            weights: (Hugging Face name, whole tensor).
            version: what the servers call them.

        Raises:
            SGLangError: no server answers, one refuses, or one has other weights afterwards.
        """
        rest = iter(weights)
        try:
            with controls(self.urls) as servers:
                self._send(self._answering(servers), servers, rest, version)
        finally:
            for _ in rest:
                pass

    def close(self) -> None:
        """Leave the process group."""
        if self._way is not None:
            self._way.close()
            self._way = None

    def _send(
        self, living: list[Control], servers: Sequence[Control], weights: Iterator[tuple[str, Tensor]], version: int
    ) -> None:
        keeps = self.tolerant or self.transport == "disk"
        copy = snapshot.Snapshot(self.folder, self.checkpoint, version) if keeps else None
        samples = Samples()
        size = min(self.piece_bytes, BODY_BYTES) if self.transport == "tensor" else self.piece_bytes
        pieces = (samples.of(piece) for piece in cut(weights, size))
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
                    arrived = self._travel(living, pieces, copy, version)
                    path = copy.publish() if copy is not None else None
                    if not arrived:
                        self._load(self._answering(living), path, version)
        except BaseException:
            if copy is not None:
                copy.discard()
            raise
        # A server that was not there at first reads the copy when it starts, or now.
        verified = self._answering(servers)
        self._load([control for control in verified if control.version() != version], path, version)
        self._verify(verified, samples, version)

    def _travel(
        self, living: Sequence[Control], pieces: Iterator[Piece], copy: snapshot.Snapshot | None, version: int
    ) -> bool:
        """Send all pieces, and add them to the copy. False: a server failed on the way, and there is a copy."""
        way = self._way = self._way or self._make_way()
        try:
            way.open(living, snapshot.starts(self.folder))
            with _update(living):
                for piece in pieces:
                    if copy is not None:
                        copy.add(piece)
                    way.send(living, piece, version)
        except (SGLangError, RuntimeError) as error:
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

    def _make_way(self) -> Transport:
        if self.transport == "tensor":
            return TensorTransport(self.ranks)
        return GroupTransport(self.ranks, self.group_backend())

    def group_backend(self) -> Literal["nccl", "gloo"]:
        """What makes the process group of `transport` "nccl"."""
        import torch

        on_gpu = torch.cuda.is_available() if self.on_gpu is None else self.on_gpu
        return "nccl" if on_gpu and not self.shares_gpus else "gloo"

    def _load(self, servers: Sequence[Control], path: Path | None, version: int) -> None:
        """Let these servers read the copy."""
        if not servers:
            return
        if path is None:
            named = ", ".join(control.url for control in servers)
            raise SGLangError(f"After an update to version {version}, these servers have other weights: {named}.")
        body = {"model_path": str(path.resolve()), "weight_version": str(version), "flush_cache": False}
        self._settle(ask_all(servers, "/update_weights_from_disk", body))

    @contextlib.contextmanager
    def _paused(self, servers: Sequence[Control]) -> Iterator[None]:
        """No server generates inside. What was computed with the old weights is forgotten at the end, except for requests
        that are running."""
        with snapshot.being_updated(self.folder) if self.tolerant else contextlib.nullcontext():
            try:
                self._settle(ask_all(servers, "/pause_generation", {"mode": self.pause_mode}))
                yield
                for control, error in ask_all(servers, "/flush_cache").outcomes().items():
                    if error is not None and not isinstance(error, Gone):
                        logger.warning(
                            "%s keeps what the old weights computed of prompts, because requests are running",
                            control.url,
                        )
            finally:
                self._settle(ask_all(servers, "/continue_generation"))

    def _verify(self, servers: Sequence[Control], samples: Samples, version: int) -> None:
        """Compare what the servers have with what was sent.

        Raises:
            SGLangError: it differs.
        """
        for control in servers:
            if (found := control.version()) != version and not (self.tolerant and found is None):
                raise SGLangError(f"{control.url} has weights of version {found} after an update to {version}.")
            with contextlib.suppress(Gone) if self.tolerant else contextlib.nullcontext():
                samples.compare(control)
        if self.compare_servers and len(servers) > 1:
            sums = [control.ask("/weights_checker", {"action": "checksum"}) for control in servers]
            different = [c.url for c, found in zip(servers, sums, strict=True) if _sums(found) != _sums(sums[0])]
            if different:
                raise SGLangError(
                    f"{', '.join(different)} have other weights than {servers[0].url} (checksums differ)."
                )

    def _answering(self, servers: Sequence[Control]) -> list[Control]:
        """The servers that can be asked.

        Raises:
            Gone: one that must be there is not, or none is.
        """
        found = [control for control in servers if control.answers()]
        if not found or (len(found) < len(servers) and not self.tolerant):
            missing = ", ".join(control.url for control in servers if control not in found)
            raise Gone(f"SGLang servers do not answer, so they cannot be given weights: {missing}.")
        return found

    def _settle(self, asked: Asked) -> None:
        """Wait for all servers; one that is gone is the fleet's business."""
        for error in asked.outcomes().values():
            if error is not None and not (self.tolerant and isinstance(error, Gone)):
                raise error


@contextlib.contextmanager
def _update(servers: Sequence[Control]) -> Iterator[None]:
    """The session in which SGLang accepts weights; older versions have none."""
    asked = ask_all(servers, "/begin_weight_update")
    errors = [error for error in asked.outcomes().values() if error is not None]
    if any(not isinstance(error, Unsupported) for error in errors):
        raise next(error for error in errors if not isinstance(error, Unsupported))
    try:
        yield
    finally:
        if not errors:
            ended = ask_all(servers, "/end_weight_update").outcomes()
    for error in ended.values() if not errors else ():
        if error is not None:
            raise error


_SHOWN = 1 << 22
"""Elements of the largest tensor that a server is asked to show a row of: it turns all of it into a Python list first."""


class Samples:
    """A row of some of the tensors that are sent: of those that are not too large the first, the second, the fourth, the
    eighth …"""

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self._count = 0

    def of(self, piece: Piece) -> Piece:
        """Take samples of a piece, and return it."""
        for name, tensor in piece:
            if tensor.numel() > _SHOWN:
                continue
            self._count += 1
            if self._count & (self._count - 1) == 0:
                self._rows[name] = tensor.detach()[:1].cpu().clone()
        return piece

    def compare(self, control: Control) -> None:
        """Compare them with a server's, in the server's number format. Models that cannot show theirs pass.

        Raises:
            SGLangError: one differs.
            Gone: the server does not answer.
        """
        import torch

        for name, row in self._rows.items():
            try:
                found = control.ask("/get_weights_by_name", {"name": name, "truncate_size": 1})
            except Gone:
                raise
            except SGLangError:
                return
            if not isinstance(found, list):
                return
            theirs = torch.tensor(found, dtype=torch.float32).flatten()
            formats = (torch.float32, torch.bfloat16, torch.float16)
            if not any(torch.equal(row.to(kind).float().flatten(), theirs) for kind in formats):
                raise SGLangError(f"{control.url} has another {name} than it was sent.")


def cut(weights: Iterable[tuple[str, Tensor]], size: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Pieces of at most `size` bytes, in order; a larger tensor is a piece of its own."""
    piece: list[tuple[str, Tensor]] = []
    filled = 0
    for name, tensor in weights:
        if piece and filled + tensor.nbytes > size:
            yield piece
            piece, filled = [], 0
        piece.append((name, tensor))
        filled += tensor.nbytes
    if piece:
        yield piece


def _sums(found: Any) -> Any:
    return [rank.get("checksums") for rank in found.get("ranks") or []]
