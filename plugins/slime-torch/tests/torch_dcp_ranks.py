"""Run by test_torch_dcp.py: `python torch_dcp_ranks.py FOLDER`.

Two ranks train a model spread over them and save, once at once and once while they go on; then one, two and three ranks
load that and compare. A rank that fails ends with its traceback and the exit status 1.
"""

from __future__ import annotations

import logging
import os
import sys
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from slime_torch import state

PARTS = torch.tensor([[0.5, -1.0, 2.0, 0.25, -0.75], [1.5, 0.1, -0.2, 0.3, 0.9]], dtype=torch.float64)


def build(value: float | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Neither 5 nor 3 rows can be cut into two equal parts, and three ranks have no row of the last layer to give to
    each."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1)).double()
    if value is not None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
    if dist.is_initialized():
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(PARTS).square().sum().backward()  # the same on every rank, so that the mean over ranks is it too
    optimizer.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Whole tensors. All ranks call it."""
    found = state.collect(model, optimizer, 0)
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in found.items()
        if not name.startswith("rank_")
    }


def save(folder: Path, background: bool) -> None:
    model, optimizer = build()
    for _ in range(2):
        step(model, optimizer)
    expected = everything(model, optimizer)
    torch.manual_seed(100 + dist.get_rank())
    saver = state.Saver()
    saver.save(folder / "state", state.collect(model, optimizer, 2), background)
    step(model, optimizer)  # in the background case, while the state is being written
    assert saver.saved()
    then = everything(model, optimizer)
    if dist.get_rank() == 0:
        torch.save({"saved": expected, "then": then}, folder / "expected.pt")


def load(folder: Path) -> None:
    expected = torch.load(folder / "expected.pt")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model, optimizer = build(value=0.5)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("slime_torch.state").addHandler(handler)
    assert state.load(folder / "state", model, optimizer) == 2
    assert torch.initial_seed() == 100 + (rank if world == 2 else 0)
    assert ["was saved by 2 ranks" in text for text in records] == ([] if world == 2 else [True]), records
    found = everything(model, optimizer)
    assert found.keys() == expected["saved"].keys()
    assert len(found) == 6 + 6 * 3
    for name, wanted in expected["saved"].items():
        assert torch.equal(found[name], wanted), name
    step(model, optimizer)
    for name, tensor in everything(model, optimizer).items():
        torch.testing.assert_close(tensor, expected["then"][name], rtol=1e-12, atol=1e-12)


def run(rank: int, what: str, world: int, folder: Path, background: bool) -> None:
    if world > 1:
        meeting = f"file://{folder}/meeting_{what}_{world}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    save(folder, background) if what == "save" else load(folder)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for what in ("at-once", "background"):
        (folder / what / "state").mkdir(parents=True)
    context = get_context("fork")
    phases = [("at-once", "save", 2), *(("at-once", "load", world) for world in (1, 2, 3))]
    phases += [("background", "save", 2), ("background", "load", 1)]
    for when, what, world in phases:
        own = (what, world, folder / when, when == "background")
        ranks = [context.Process(target=run, args=(rank, *own)) for rank in range(world)]
        try:
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(120)
            if any(process.exitcode for process in ranks):
                return 1
        finally:
            for process in ranks:
                process.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
