"""The memory of LoRA against that of training all weights: `python -m benchmarks.lora_memory`, on a CPU in some minutes.

Each mode takes the same optimizer steps on SmolLM2-135M-Instruct in fp32 with Adam, through slime's torch backend, in a
process of its own. Prints the largest resident memory of each process once the model was loaded and at the end, the
number of trained weights, and the loss of the first step, which is the same in all modes since an adapter starts as 0.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT, prepared

MODES = {
    "all weights": [],
    "LoRA": ["--lora-rank", "16"],
    "all weights, gradient checkpointing": ["--gradient-checkpointing"],
    "LoRA, gradient checkpointing": ["--lora-rank", "16", "--gradient-checkpointing"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; SmolLM2-135M-Instruct if none is given")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="per step, one micro-batch each")
    parser.add_argument("--tokens", type=int, default=256, help="per sample")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(measure(options, options.worker)))
        return
    options.model = options.model or prepared("model")
    print("| mode | trained weights | after loading | at most | loss of step 1 |\n|---|---|---|---|---|")
    for name, words in MODES.items():
        shape = [f"--{what}={getattr(options, what)}" for what in ("model", "steps", "samples", "tokens")]
        command = [sys.executable, "-m", "benchmarks.lora_memory", *shape, "--worker", *words]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {found['trained']:,} | {found['loaded_gib']:.2f} GiB | {found['peak_gib']:.2f} GiB | "
            f"{found['loss']:.6f} |",
            flush=True,
        )


def measure(options: argparse.Namespace, words: list[str]) -> dict[str, float]:
    """Train in this process, with the further options `words`."""
    import random

    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.plugins import Plugins
    from slime_core.sample import Sample
    from slime_core.training.batches import make_train_batch
    from slime_losses.sft import sft_loss
    from slime_torch.backend import TorchBackend

    flags = ["--hf-checkpoint", str(options.model), "--prompt-data", "none", "--num-rollout", str(options.steps)]
    flags += ["--rollout-batch-size", str(options.samples), "--lr", "1e-5", *words]
    backend = TorchBackend(resolve(Namespace(Plugins()), flags).args)
    backend.setup(sft_loss, options.steps)
    loaded = peak_gib()
    generator = random.Random(0)
    losses = []
    for _ in range(options.steps):
        samples = [
            Sample(
                index=number,
                tokens=[generator.randrange(1000, 10000) for _ in range(options.tokens)],
                response_length=options.tokens - 1,
            )
            for number in range(options.samples)
        ]
        losses.append(backend.train_step(make_train_batch(samples, mean="token", micro_batch_size=1))["loss"])
    trained = sum(p.numel() for p in backend.model.parameters() if p.requires_grad)
    return {"trained": trained, "loaded_gib": loaded, "peak_gib": peak_gib(), "loss": losses[0]}


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
