"""`slime export`: a Hugging Face folder of any checkpoint of a run."""

from __future__ import annotations

import time
from pathlib import Path

from slime_core.arguments.of_a_command import read_options
from slime_core.contracts.options import ArgumentGroup, option
from slime_core.display import told
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.run.export import Dtype, ExportOptions, export_checkpoint

PROG = "slime export CHECKPOINT FOLDER"


class ExportArguments(ArgumentGroup):
    """The export"""

    dtype: Dtype | None = option(
        None,
        "Write all weights in this dtype. Default: in which they were trained, as --save-hf does. For FP8: slime convert hf-to-fp8.",
    )
    adapter: bool = option(
        False,
        "Of a run with LoRA: write the adapter alone, as peft reads it. Else the merged model is written, with the adapter in it.",
    )
    ckpt_step: int | None = option(None, "Take the checkpoint iter_N with this N, and not the newest one.", ge=0)
    hf_checkpoint: str | None = option(
        None,
        "Where the run's --hf-checkpoint is now, if it has been moved: configuration, tokenizer, and the base of adapters.",
    )
    ref_load: str | None = option(None, "Where the weights are now that the run began with, if they have been moved.")
    trust_remote_code: bool = option(
        False, "Execute Python code that the model's folder brings (auto_map in its configuration)."
    )
    force: bool = option(False, "Replace a model that is in FOLDER already.")


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime export …`."""
    words = list(argv)
    places: list[str] = []
    while words and not words[0].startswith("-"):
        places.append(words.pop(0))
    given = read_options(
        words,
        PROG,
        "Write the model of a checkpoint as a Hugging Face folder: weights, configuration, tokenizer, chat template. CHECKPOINT is a "
        "run directory, a folder of --save (of which the newest is taken), or an iter_N in it, of any train backend that is "
        "installed; or a Hugging Face folder, for the same in another --dtype. FOLDER must not be there yet.",
        ExportArguments,
    )
    if len(places) != 2:
        raise ArgumentError(
            f"Given {len(places)} folders; expected two, CHECKPOINT and FOLDER, in front of all options. See slime export --help."
        )
    started, target = time.perf_counter(), Path(places[1])
    checkpoint = export_checkpoint(Path(places[0]), target, plugins, ExportOptions(**given.model_dump()))
    size = sum(path.stat().st_size for path in target.rglob("*.safetensors"))
    print(
        told(
            f"{target}: the model of {checkpoint}, {size / 1e6:.1f} MB of weights in {time.perf_counter() - started:.1f} s"
        )
    )
    return 0
