"""Engines of a user's own project, named by import path in the tests of weights in low precision."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from slime_engine_local.engine import LocalEngine


class KeepsWeights(LocalEngine):
    """The embedded engine; every version of the weights that it is handed lies in the run directory as it came."""

    def __init__(self, args, quantised=None):
        super().__init__(args, quantised)
        self._folder = Path(args.run_dir)

    def update_weights(self, weights, version):
        came = {}

        def noted():
            for name, tensor in weights:
                assert name not in came
                came[name] = tensor.detach().clone()
                yield name, tensor

        super().update_weights(noted(), version)
        save_file(came, self._folder / f"engine-{version}.safetensors")
