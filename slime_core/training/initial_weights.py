"""Which weights a run starts from that has no checkpoint of its own to go on from, and how to say so.

They are those of `--load`, where that leads to weights of another program, else those of `--ref-load`, else those of
`--hf-checkpoint`. The reference model's are never those of `--load`. A run with adapters that goes on puts them on the weights that it
began with.
"""

from __future__ import annotations

from pathlib import Path

from slime_core.arguments import RunArguments
from slime_core.data.begun_from import BegunFrom, begun_from
from slime_core.data.checkpoint_folders import Weights, advice, recognise
from slime_core.data.ends import ends_of_weights
from slime_core.errors import CheckpointError


def with_initial_weights(args: RunArguments) -> RunArguments:
    """The arguments of the actor: its backend reads `ref_load`, and without it `hf_checkpoint`.

    Raises:
        CheckpointError: see `foreign_weights`; or the weights that adapters belong to are gone.
    """
    if foreign_weights(args):
        return args.model_copy(update={"ref_load": args.load})
    begun = begun_from(args.load) if args.lora_rank else None
    if begun is None:
        return args
    if not Path(begun.folder).exists():
        raise CheckpointError(
            f"The run in {args.load} began with --load {begun.folder}, which is not there any more, and its adapters belong to those "
            "weights. Put the folder back."
        )
    return args.model_copy(update={"ref_load": begun.folder})


def begins_as_reference(args: RunArguments) -> bool:
    """Whether the actor's first weights are those of the reference model.

    Raises:
        CheckpointError: see `with_initial_weights`.
    """
    return with_initial_weights(args).ref_load == args.ref_load


def begun_with(args: RunArguments) -> BegunFrom | None:
    """What the checkpoints of a run are to keep of the weights that it began with, where those are of another program."""
    if foreign_weights(args) and args.load:
        return BegunFrom(str(Path(args.load).absolute()), ends_of_weights(args))
    return begun_from(args.load)


def foreign_weights(args: RunArguments) -> Weights | None:
    """The weights of another program that `--load` leads to.

    Raises:
        CheckpointError: they are in a format that no backend reads.
    """
    found = recognise(Path(args.load)) if args.load else None
    if found is None or found.format == "slime":
        return None
    if found.format in ("mp_rank", "pickle"):
        raise CheckpointError(f"--load {args.load} leads to {found}, which cannot be read here. {advice(found)}")
    return found


def option_of(args: RunArguments) -> str:
    """The option that named the folder which a model's arguments have as `ref_load` or, without it, as `hf_checkpoint`."""
    if args.ref_load is None:
        return "--hf-checkpoint"
    named = {"--critic-load": args.critic_load, "--load": args.load}
    return next((option for option, folder in named.items() if folder == args.ref_load), "--ref-load")


def start_in_words(args: RunArguments) -> str:
    """What a new run starts from, one sentence. Only said where `--load` is given."""
    if found := foreign_weights(args):
        return (
            f"--load leads to {found}, of another program: the run starts from these weights. Optimizer state and iteration of "
            "another program do not come along."
        )
    origin = f"--ref-load {args.ref_load}" if args.ref_load else f"--hf-checkpoint {args.hf_checkpoint}"
    return f"--load {args.load} holds no checkpoint: the run starts from {origin}."
