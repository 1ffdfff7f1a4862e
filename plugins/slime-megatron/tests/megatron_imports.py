"""Imports what every rank needs, and takes seconds. Imported by the process that ranks are forked off, which does nothing else."""

import gc

import transformers.models.auto.modeling_auto  # noqa: F401

import slime_megatron.backend  # noqa: F401
from slime_megatron.device import compiling_nothing

with compiling_nothing():
    import megatron.core  # noqa: F401

gc.freeze()  # megatron-core collects garbage when it saves, and would look through all of it
