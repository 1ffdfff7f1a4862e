"""What FP8 costs and gains: `python -m benchmarks.fp8`, with random weights, on a bare machine in about ten minutes.

On a GPU that has FP8 arithmetic: matrix products of the shapes of Qwen3-4B, and training of a model of such layers, by every
recipe that the GPU can compute, against bfloat16. How far the products are from those of the recipe's emulation is printed with them.
On a CPU, where FP8 is emulated: the same against fp32, with the shapes of SmolLM2-135M. Products whose tensors have one scale are also
computed by torch's own FP8 product there, which is slow and only shows that it multiplies the same numbers.

Contestants take turns, each training run in a process of its own, and ratios are taken run by run. Prints, and writes to
benchmarks/results, milliseconds, tokens per second, ratios with their spread, and losses.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.processes import measured_environment, run_process, smollm2_shaped, unwind_on_signals
from benchmarks.quiet import add_option, beside_others, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.contracts.precision import Hardware

RECIPES = ("tensorwise", "delayed", "blockwise", "mxfp8")
HIGH = "high precision"
QWEN3_4B = {
    "q_proj": (2560, 4096),
    "k_proj, v_proj": (2560, 1024),
    "gate_proj, up_proj": (2560, 9728),
    "down_proj": (9728, 2560),
}
SMOLLM2_135M = {
    "q_proj, o_proj": (576, 576),
    "k_proj, v_proj": (576, 192),
    "gate_proj, up_proj": (576, 1536),
    "down_proj": (1536, 576),
}
"""(in, out) of the matrices of a layer."""
LAYERS_ON_GPU = 8
PACKAGES = ("slime-core", "slime-fp8", "slime-torch", "torch", "transformers")

Product = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class ProductFigures:
    """The three products of one matrix under one recipe.

    Attributes:
        milliseconds: of each repeat.
        ratios: how many times as fast as high precision, repeat by repeat.
        error: from the emulation, relative, the largest of the three; None where it is the emulation.
    """

    recipe: str
    matrix: str
    milliseconds: list[float]
    ratios: list[float]
    error: float | None


@dataclass(frozen=True)
class Run:
    """One training run. The first step is not timed. `others` is the share of all processors' time that others used meanwhile."""

    tokens_per_second: float
    losses: list[float]
    others: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--steps", type=int, default=4, help="steps of a training run; the first is not timed")
    parser.add_argument("--tokens", type=int, help="tokens of a packed row; 128, on a GPU 16384")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    add_option(parser)
    given = parser.parse_args()
    if given.worker:
        train(*given.worker)
        return
    if given.steps < 2:
        parser.error("--steps must be at least 2, since the first step is not timed")
    unwind_on_signals()
    import torch

    from slime_core.runtime.hardware import hardware_of

    torch.set_num_threads(given.threads)
    gpu = torch.cuda.is_available()
    hardware = hardware_of(torch.device("cuda" if gpu else "cpu"))
    tokens = given.tokens or (16384 if gpu else 128)
    skipped = {name: why for name in RECIPES if (why := reason_against(name, hardware))} if gpu else {}
    recipes = [name for name in RECIPES if name not in skipped]
    tell("products")
    require_quiet(given.under_load)
    shapes = QWEN3_4B if gpu else SMOLLM2_135M
    products, others = beside_others(partial(measure_products, recipes, hardware, shapes, tokens, given.repeats))
    runs: dict[str, list[Run]] = {name: [] for name in (HIGH, *recipes)}
    with tempfile.TemporaryDirectory() as scratch:
        model = qwen3_4b_shaped(Path(scratch)) if gpu else smollm2_shaped(Path(scratch) / "model")
        for repeat in range(given.repeats):
            for name in runs if repeat % 2 == 0 else reversed(runs):
                tell(f"training, repeat {repeat + 1}/{given.repeats}: {name}")
                require_quiet(given.under_load)
                runs[name].append(measure_training(name, model, tokens, given.steps, given.threads, gpu))
    print(report(hardware, skipped, products, runs, tokens))
    print(f"\n{sentence([others, *(run.others for own in runs.values() for run in own)])}")
    found: dict[str, Any] = {
        "command": command("fp8"),
        "machine": machine(given.threads),
        "versions": versions(*PACKAGES),
    }
    found |= {"hardware": asdict(hardware), "skipped": skipped, "tokens": tokens, "others": others}
    found |= {"products": [asdict(one) for one in products]}
    found |= {"training": {name: [asdict(run) for run in own] for name, own in runs.items()}}
    (RESULTS / f"fp8-{'gpu' if gpu else 'cpu'}.json").write_text(json.dumps(found, indent=1) + "\n")


def reason_against(name: str, hardware: Hardware) -> str:
    """Why a GPU does not compute a recipe; "" if it does."""
    from slime_core.errors import ArgumentError

    try:
        recipe(name).hardware_linear("x.weight", hardware)
    except ArgumentError as error:
        return str(error)
    return ""


def recipe(name: str) -> Any:
    """A recipe as `--fp8-format e4m3` makes it."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.plugins import Plugins

    plugins = Plugins()
    words = ["--hf-checkpoint", "none", "--prompt-data", "none", "--num-rollout", "1", "--fp8-format", "e4m3"]
    words += ["--rollout-batch-size", "1"]
    args = resolve(Namespace(plugins), [*words, "--fp8-recipe", name, "--fp8-emulation"]).args
    return plugins.select("precision_recipe", name)(args, LAYERS_ON_GPU)


def measure_products(
    recipes: list[str], hardware: Hardware, shapes: dict[str, tuple[int, int]], tokens: int, repeats: int
) -> list[ProductFigures]:
    """Output and both gradients of each matrix, by high precision and by each recipe in turn."""
    import torch
    import torch.nn.functional as F

    gpu = hardware.capability is not None
    dtype, device = (torch.bfloat16, "cuda") if gpu else (torch.float32, "cpu")
    found = []
    for matrix, (width, out) in shapes.items():
        torch.manual_seed(0)
        given = [
            torch.randn(size, device=device, dtype=dtype) for size in ((tokens, width), (out, width), (tokens, out))
        ]
        given[1] *= width**-0.5
        for name in recipes:
            emulated = recipe(name).linear("x.weight")
            fast: Product = recipe(name).hardware_linear("x.weight", hardware) if gpu else emulated
            for product in (emulated, fast):
                product.to(device) if isinstance(product, torch.nn.Module) else None
            times: dict[Product, list[float]] = {fast: [], F.linear: []}
            for _ in range(repeats):
                for product, own in times.items():
                    own.append(1e3 * seconds_of(partial(three_products, product, *given), gpu))
            error = (
                furthest(three_products(fast, *given), three_products(emulated, *given)) if gpu else on_cpu(name, given)
            )
            ratios = [high / low for high, low in zip(times[F.linear], times[fast], strict=True)]
            found.append(ProductFigures(name, matrix, times[fast], ratios, error))
    return found


def on_cpu(name: str, given: list[Tensor]) -> float | None:
    """The error of torch's own FP8 product on a CPU, which it has for one scale to a tensor; None without it, as before torch 2.13."""
    from slime_fp8.fused import BY_TORCH

    if name not in ("tensorwise", "delayed"):
        return None
    try:
        own = three_products(recipe(name).products(BY_TORCH), *given)
    except NotImplementedError:
        return None
    return furthest(own, three_products(recipe(name).linear("x.weight"), *given))


def three_products(product: Product, x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """(output, gradient of x, gradient of w)."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = product(x, w)
    y.backward(g)
    assert x.grad is not None
    assert w.grad is not None
    return y.detach(), x.grad, w.grad


def furthest(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    """The largest relative distance of two groups of tensors, pair by pair."""
    pairs = ((a.float(), b.float()) for a, b in zip(some, others, strict=True))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def seconds_of(work: Callable[[], Any], gpu: bool) -> float:
    """How long work takes: the best of several times, after once to warm up. On a GPU ten of them are queued each time, as a step of
    training queues its products; what a processor takes to start them counts where it is more."""
    import torch

    found, together = [], 10 if gpu else 1
    for number in range(4 if gpu else 3):
        if gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(together):
            work()
        if gpu:
            torch.cuda.synchronize()
        if number:
            found.append((time.perf_counter() - started) / together)
    return min(found)


def qwen3_4b_shaped(scratch: Path) -> Path:
    """A random model with layers of the shape of Qwen3-4B, but few of them, as a Hugging Face checkpoint."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from slime_core.testing import chat_tokenizer

    config = Qwen3Config(
        vocab_size=32768,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=LAYERS_ON_GPU,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(scratch / "model")
    chat_tokenizer().save_pretrained(scratch / "model")
    return scratch / "model"


def measure_training(name: str, model: Path, tokens: int, steps: int, threads: int, gpu: bool) -> Run:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        job.write_text(json.dumps({"name": name, "model": str(model), "tokens": tokens, "steps": steps, "gpu": gpu}))
        words = [sys.executable, "-m", "benchmarks.fp8", "--worker", str(job), str(result)]
        ended = run_process(words, measured_environment(threads))
        return Run(**json.loads(result.read_text()), others=ended.others)


def train(job: str, result: str) -> None:
    """Train in this process on rows of random tokens, and write down what was found."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.plugins import Plugins
    from slime_core.sample import Sample
    from slime_core.training.batches import make_train_batch
    from slime_core.training.components import choose_train_components
    from slime_losses.sft import sft_loss

    given = json.loads(Path(job).read_text())
    words = ["--hf-checkpoint", given["model"], "--prompt-data", "none", "--num-rollout", str(given["steps"])]
    words += ["--rollout-batch-size", "1", "--lr", "1e-5", "--lr-decay-style", "constant", "--loss-type", "sft_loss"]
    words += ["--disable-compute-advantages-and-returns"]
    words += ["--bf16"] if given["gpu"] else []
    if given["name"] != HIGH:
        words += ["--fp8-format", "e4m3", "--fp8-recipe", given["name"], *["--fp8-emulation"] * (not given["gpu"])]
    plugins = Plugins()
    args = resolve(Namespace(plugins), words).args
    components = choose_train_components(args, plugins)
    backend: Any = components.train_backend(args, components)
    backend.setup(sft_loss, given["steps"])
    generator, length = random.Random(0), min(512, given["tokens"])
    losses, seconds = [], []
    for _ in range(given["steps"]):
        rows = [[generator.randrange(256) for _ in range(length)] for _ in range(given["tokens"] // length)]
        samples = [Sample(tokens=row, response_length=length - 1, loss_mask=[1] * (length - 1)) for row in rows]
        batch = make_train_batch(samples, mean="token", max_tokens=given["tokens"])
        started = time.perf_counter()
        losses.append(backend.train_step(batch)["loss"])
        seconds.append(time.perf_counter() - started)
    speed = given["tokens"] // length * length / median(seconds[1:])
    Path(result).write_text(json.dumps({"tokens_per_second": speed, "losses": losses}))


def report(
    hardware: Hardware, skipped: dict[str, str], products: list[ProductFigures], runs: dict[str, list[Run]], tokens: int
) -> str:
    """The measurements as Markdown."""
    high, how = ("bfloat16", "by its FP8 arithmetic") if hardware.capability else ("fp32", "emulated")
    lines = [
        f"{hardware.name}, FP8 {how}, against {high}; {tokens} tokens. Median (lowest to highest) of {len(runs[HIGH])}.",
        "",
    ]
    lines += [
        "| recipe | matrix | ms for its three products | as fast as " + high + " | off from the emulation |",
        "|---|---|---|---|---|",
    ]
    for one in products:
        off = "—" if one.error is None else f"{one.error:.1e}"
        lines.append(
            f"| {one.recipe} | {one.matrix} | {spread(one.milliseconds, '', 2)} | {spread(one.ratios, '×', 2)} | {off} |"
        )
    lines += [
        "",
        f"| training | tokens/s | as fast as {high} | largest relative difference of a loss |",
        "|---|---|---|---|",
    ]
    for name, own in runs.items():
        ratio = difference = "—"
        if name != HIGH:
            pairs = list(zip(own, runs[HIGH], strict=True))
            ratio = spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs], "×", 2)
            losses = zip(own[0].losses, runs[HIGH][0].losses, strict=True)
            difference = f"{max(abs(a - b) / b for a, b in losses):.1e}"
        lines.append(f"| {name} | {spread([run.tokens_per_second for run in own], '', 0)} | {ratio} | {difference} |")
    lines += [f"\n{name} was left out: {why}" for name, why in skipped.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
