"""Fixtures shared by the tests of the core."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

HEAD = """
from slime_core import Lazy, hookimpl
from slime_core.contracts.options import ArgumentGroup, option, reads_options
"""


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`install_plugin(code, module="open_pack")` puts a distribution with one plugin on the path, as pip would leave it. What
    plugins import most is imported in front of the code."""
    site = tmp_path / "site"

    def install(
        code: str,
        module: str = "open_pack",
        distribution: str = "",
        version: str = "1.0",
        requires: str = "slime-core>=0.1",
        entry: str = "",
    ) -> None:
        """Write the module, and metadata of the distribution (called like the module unless said) with the entry point."""
        distribution = distribution or module
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(HEAD + textwrap.dedent(code) + "\n")
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Dist: {requires}\n"
        )
        (info / "entry_points.txt").write_text(f"[slime]\n{module} = {entry or module}\n")
        monkeypatch.syspath_prepend(site)

    return install


@pytest.fixture(scope="session")
def sft_anywhere(tiny_model: Path, chat_rows: Path) -> list[str]:
    """The options of a small run of supervised fine-tuning, but for its folder."""
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    flags += ["--rollout-batch-size", "4", "--num-rollout", "1"]
    return [*flags, "--rollout-function-path", "sft", "--loss-type", "sft_loss"]


@pytest.fixture
def sft(sft_anywhere: list[str], tmp_path: Path) -> list[str]:
    """The options of a small run of supervised fine-tuning."""
    return [*sft_anywhere, "--run-dir", str(tmp_path / "run")]


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and rows with one image, with two, and with none."""
    from vision_checkpoints import picture, write_checkpoint

    folder = write_checkpoint(tmp_path_factory.mktemp("shown"), "qwen2_5_vl")
    rows = []
    for number in range(8):
        parts = [{"type": "image", "image": f"{n}.png"} for n in range(number, number + (0, 1, 1, 2)[number % 4])]
        content = [*parts, {"type": "text", "text": f"What is {number}?"}]
        rows.append({"messages": [{"role": "user", "content": content}], "metadata": {"images": len(parts)}})
    for number in range(9):
        (folder / f"{number}.png").write_bytes(picture(40 + 8 * number, 60, seed=number))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
