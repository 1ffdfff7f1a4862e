"""The components that come with the core, registered through the same hooks as everybody's."""

from __future__ import annotations

from slime_core import Lazy, hookimpl


@hookimpl
def slime_commands() -> dict[str, Lazy]:
    return {
        "train": Lazy(
            "slime_core.cli.train:train",
            summary="run a recipe: get samples, train on them, hand the weights back",
        ),
        "train-async": Lazy(
            "slime_core.cli.train:train_async",
            summary="the same, making the next samples while this batch trains",
        ),
        "check": Lazy(
            "slime_core.cli.train:check",
            summary="resolve and validate a whole run, print it, start nothing",
        ),
        "eval": Lazy(
            "slime_core.cli.evaluate:main",
            summary="evaluate models, or the checkpoints of a run, as training does",
        ),
        "export": Lazy(
            "slime_core.cli.export:main",
            summary="write the model of any checkpoint as a Hugging Face folder",
        ),
        "samples": Lazy(
            "slime_core.cli.samples:main",
            summary="print the samples of a dump, an evaluation or a checkpoint",
        ),
        "recipes": Lazy(
            "slime_core.cli.recipes:main",
            summary="list the recipes that can be run by name, or print one",
        ),
        "convert": Lazy(
            "slime_core.cli.convert:main",
            summary="convert a checkpoint from one format to another",
        ),
        "plugins": Lazy(
            "slime_core.cli.plugins:main",
            summary="list the installed plugins and their components",
        ),
    }


@hookimpl
def slime_data_sources() -> dict[str, Lazy]:
    return {
        "global": Lazy(
            "slime_core.data.source:GlobalDataSource",
            summary="all prompts in order or shuffled per epoch, with a buffer for unfinished groups",
            aliases=("slime.rollout.data_source.RolloutDataSourceWithBuffer",),
            reads_options=(),
        ),
        "streaming": Lazy(
            "slime_core.data.source:StreamingDataSource",
            summary="the same from files and pipes that can only be read forward; needs --num-rollout",
            reads_options=("shuffle_buffer_size",),
        ),
    }


@hookimpl
def slime_buffer_pops() -> dict[str, Lazy]:
    return {
        "pop_first": Lazy(
            "slime_core.data.source:pop_first",
            summary="takes the oldest groups first",
            aliases=("slime.rollout.data_source.pop_first",),
            reads_options=(),
        )
    }
