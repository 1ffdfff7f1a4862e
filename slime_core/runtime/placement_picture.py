"""Which process is on which GPU, drawn for a person. Pure; `Layout.describe` puts it below its words.

node 1, GPU   0  1  2  3  4  5  6  7
  rank        0  1  2  3  4  5  6  7
  server      0  0  1  1  2  2  3  3
"""

from __future__ import annotations

from collections.abc import Sequence

WIDEST = 16
"""Numbers in a line; longer ones are given by their ends."""


def picture(nodes: int, ranks_per_node: int, engine: str, own: int, per_server: int) -> list[str]:
    """Draw training nodes with what is beside their ranks, and then the engine's own GPUs.

    Args:
        engine: "servers", "worker" (with the rollout worker) or something else, which takes no GPU.
        own: GPUs of the engine's own; 0: it shares those that train, or has none.
        per_server: GPUs of a server.
    """
    lines = []
    for node in range(nodes):
        ranks = range(node * ranks_per_node, (node + 1) * ranks_per_node)
        lines += [_line(f"node {node + 1}, GPU", range(ranks_per_node)), _line("  rank", ranks)]
        if engine == "servers" and not own:
            lines.append(_line("  server", [rank // per_server for rank in ranks]))
        if engine == "worker" and not own and node == 0:
            lines.append(_line("  engine", ["*"] * ranks_per_node))
    if own and engine in ("servers", "worker"):
        where = "engine, GPU" if engine == "worker" else "engine, GPU (of any node)"
        lines.append(_line(where, range(own)))
        if engine == "servers":
            lines.append(_line("  server", [device // per_server for device in range(own)]))
    return lines


def _line(name: str, numbers: Sequence[object]) -> str:
    shown = list(numbers) if len(numbers) <= WIDEST else [numbers[0], numbers[1], "…", numbers[-1]]
    return f"{name:<26}" + "".join(f"{number!s:>4}" for number in shown)
