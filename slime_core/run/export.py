"""`export_checkpoint`: a Hugging Face folder of a checkpoint of a run, without the run. Called by `slime export` and `slime eval`.

The train backend that wrote the checkpoint knows what is in it (`slime_core.contracts.train_backend.ExportsStates`). What comes out
is what `--save-hf` writes after the same rollout, the same numbers bit for bit: the weights in high precision, the ends of what was
trained, and where `--hf-checkpoint` is quantised a checkpoint in its format too. The folder appears whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import remember_secrets
from slime_core.contracts.train_backend import ExportsStates, TrainBackend
from slime_core.data.begun_from import begun_from
from slime_core.data.checkpoint_folders import advice, recognise
from slime_core.data.ends import add_ends, stored_trained_ends
from slime_core.errors import ArgumentError, CheckpointError, PluginError
from slime_core.output import writing
from slime_core.plugins import Plugins, Selected
from slime_core.remote_code import copy_code, trust_remote_code
from slime_core.run.checkpoints import load_state, require_state, stored_arguments
from slime_core.run.stored_run import arguments_of, require_checkpoint
from slime_core.training.components import quantised_checkpoints
from slime_core.training.initial_weights import with_initial_weights
from slime_core.unfinished import let_others_read, replace_folder, unfinished

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments

Dtype = Literal["bf16", "fp16", "fp32"]
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class ExportOptions:
    """What `slime export` is asked for.

    Attributes:
        ckpt_step: iter_N of this N, and not the newest.
        dtype: of all weights; None: as they were trained.
        adapter: of a run with LoRA the adapter alone.
        hf_checkpoint, ref_load: where these folders of the run are now; None: where they were.
        trust_remote_code: code that the model's folder brings may be executed.
        force: a model or adapter that is in the folder is replaced.
    """

    ckpt_step: int | None = None
    dtype: Dtype | None = None
    adapter: bool = False
    hf_checkpoint: str | None = None
    ref_load: str | None = None
    trust_remote_code: bool = False
    force: bool = False


def export_checkpoint(source: Path, target: Path, plugins: Plugins, options: ExportOptions) -> Path:
    """Write the model of a checkpoint into the folder `target`, and return the checkpoint.

    Args:
        source: a run directory, a folder of checkpoints, or one of these.

    Raises:
        CheckpointError: there is no complete checkpoint, or it does not go with the model's folder.
        ArgumentError: an option does not go with it, or something else is in `target`.
        PluginError: what wrote the checkpoint is not installed.
    """
    trust_remote_code(options.trust_remote_code)
    found = recognise(source)
    if found is not None and found.format == "huggingface" and found.path == source:
        return _copied(source, target, options)
    if found is not None and found.format != "slime" and not (source / "config.yaml").is_file():
        raise ArgumentError(f"{source} leads to {found}, no checkpoint of a run. {advice(found)}")
    checkpoint = require_checkpoint(source, options.ckpt_step)
    require_state(load_state(checkpoint))
    backend = _backend(checkpoint, plugins)
    args = arguments_for_export(checkpoint, plugins, options)
    quantised = quantised_checkpoints(args, plugins)
    served = None if options.adapter else quantised.get(args.hf_checkpoint)
    with _new_folder(target, options.force, (checkpoint, args.hf_checkpoint, args.ref_load)) as folder:
        exporting: Any = backend(with_initial_weights(args))
        exporting.export_state(checkpoint / "trainer", folder, quantised, options.adapter)
        copy_code(args.hf_checkpoint, folder)
        ends = stored_trained_ends(checkpoint / "trainer")
        if not options.adapter:
            add_ends(folder, ends)
        if served is not None:
            from slime_core.tensors.quantised_weights import write_quantised
            from slime_core.tensors.stored_weights import read_all

            write_quantised(folder / "quantised", read_all(folder), served)
            add_ends(folder / "quantised", ends)
        if options.dtype is not None:
            _cast(folder, options.dtype)
    return checkpoint


def _copied(source: Path, target: Path, options: ExportOptions) -> Path:
    """Of a model that is exported already: the same in another dtype."""
    if options.dtype is None:
        raise ArgumentError(
            f"{source} is a Hugging Face checkpoint already. Use it as it is, or give --dtype for the same in another one."
        )
    if options.adapter or options.ckpt_step is not None:
        raise ArgumentError(
            f"--adapter and --ckpt-step are for checkpoints of a run, and {source} is an exported model."
        )
    with _new_folder(target, options.force, (source,)) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "quantised"))
        _cast(folder, options.dtype)
    return source


def _cast(folder: Path, dtype: Dtype) -> None:
    from slime_core.tensors.stored_weights import cast_all

    cast_all(folder, dtype)


def _backend(checkpoint: Path, plugins: Plugins) -> Selected[TrainBackend]:
    """The train backend that wrote a checkpoint.

    Raises:
        PluginError: it is not installed, or cannot export what it wrote.
    """
    name = str(stored_arguments(checkpoint).get("train_backend", "torch"))
    try:
        backend: Selected[TrainBackend] = plugins.select("train_backend", name, "--train-backend")
    except PluginError as error:
        error.add_note(f"{checkpoint} was written by the train backend {name!r}, which alone knows what is in it")
        raise
    if not issubclass(backend.target, ExportsStates):  # type: ignore[arg-type]  # is a class
        raise PluginError(
            f"The {backend.label} wrote {checkpoint} and exports nothing without a run (it has no method export_state). Go on with the run "
            "by --load, and let it export with --save-hf."
        )
    return backend


def arguments_for_export(checkpoint: Path, plugins: Plugins, options: ExportOptions) -> RunArguments:
    """The arguments of the run that wrote a checkpoint, with the folders where they are now.

    Raises:
        CheckpointError: a folder of the run is gone.
        ArgumentError: an option does not go with the run.
    """
    given = {"hf_checkpoint": options.hf_checkpoint, "ref_load": options.ref_load}
    changes: dict[str, Any] = {name: folder for name, folder in given.items() if folder is not None}
    args = arguments_of(checkpoint, Namespace(plugins), trust_remote_code=options.trust_remote_code, **changes)
    remember_secrets(args)
    if options.adapter and not args.lora_rank:
        raise ArgumentError(
            f"--adapter: {checkpoint} is of a run without LoRA, which has no adapter. Leave --adapter out."
        )
    if args.lora_rank and (begun := begun_from(str(checkpoint))) is not None:
        args = args.model_copy(update={"load": None if options.ref_load else begun.folder})
    missing = {"--hf-checkpoint": args.hf_checkpoint, "--ref-load": args.ref_load}
    if (
        args.lora_rank
        and not options.adapter
        and args.load
        and not args.ref_load
        and not _is_own(args.load, checkpoint)
    ):
        missing["--load"] = args.load  # whose weights the adapters belong to
    for option, folder in missing.items():
        if folder and not Path(folder).exists():
            what = "configuration and tokenizer" if option == "--hf-checkpoint" else "weights"
            now = "--hf-checkpoint" if option == "--hf-checkpoint" else "--ref-load"
            raise CheckpointError(
                f"The run that wrote {checkpoint} had {option} {folder}, which is not there any more, and whose {what} are needed. "
                f"Say where that folder is now: {now} FOLDER."
            )
    return args


def _is_own(load: str, checkpoint: Path) -> bool:
    """Whether `--load` of a run was its own folder of checkpoints, which may have been moved since."""
    found = recognise(Path(load))
    if found is not None:
        return found.format == "slime"
    return load == stored_arguments(checkpoint).get("save")


@contextmanager
def _new_folder(target: Path, force: bool, sources: tuple[Path | str | None, ...]) -> Iterator[Path]:
    """A hidden folder at `target`, which takes its place at the end of the context.

    Raises:
        ArgumentError: something is in `target` that must not be lost.
    """
    target = target.absolute()
    for source in sources:
        if source is None:
            continue
        there = Path(source).resolve()
        if target.resolve() in (there, *there.parents):
            raise ArgumentError(f"{target} is, or contains, {source}, which is exported. Choose another folder.")
    hidden = unfinished(target)  # first: what a killed export has left in the folder is no content of it
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        is_model = any((target / name).is_file() for name in ("config.json", ADAPTER))
        if not is_model:
            raise ArgumentError(f"{target} is there already, and is no exported model. Choose another folder.")
        if not force:
            raise ArgumentError(f"{target} holds a model already. Choose another folder, or replace it with --force.")
    try:
        with writing("The exported model", target):
            hidden.mkdir(parents=True)
            yield hidden
            let_others_read(hidden)
            replace_folder(hidden, target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
