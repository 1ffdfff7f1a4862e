"""How an engine is asked that may have to be shown images, and whether it can be. Called by rollout functions and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from slime_core.contracts.engine import Generates, Generation, InferenceEngine, TakesImages
from slime_core.errors import ArgumentError
from slime_core.plugins.signatures import accepted_extras

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.contracts.checking import Checking
    from slime_core.sample import Sample


async def ask(
    engine: InferenceEngine,
    args: RunArguments,
    input_ids: Sequence[int],
    sampling_params: dict[str, Any],
    request_id: str | None = None,
    images: Sequence[bytes] = (),
) -> Generation:
    """Return one response of an engine; one that takes no images is asked all the same where there are none.

    Raises:
        ArgumentError: there are images, and the engine is shown none.
    """
    if not images:
        return await engine.generate(input_ids, sampling_params, request_id)
    if refusal := image_refusal(type(engine), args):
        raise ArgumentError(refusal)
    return await cast("Generates", engine).generate(input_ids, sampling_params, request_id, images=images)


def image_refusal(engine: Any, args: RunArguments) -> str:
    """Return why an engine of this class cannot be shown the images of a run; "" where it can."""
    if not issubclass(engine, TakesImages):
        reason = "it takes none (it has no method image_refusal)"
    elif "images" not in accepted_extras(engine.generate, ("images",)):
        reason = "its generate has no parameter images"
    else:
        reason = engine.image_refusal(args)
    return (
        f"Prompts have images, and the engine {args.rollout_engine} ({engine.__name__}) cannot be shown them: {reason}. Choose another "
        "with --rollout-engine, such as local, or give prompts of text."
        if reason
        else ""
    )


def check_images(args: RunArguments, checking: Checking, samples: Sequence[Sample]) -> None:
    """Say that the engine of a run cannot be shown the images of its prompts, if it cannot."""
    engine = checking.components.rollouts.engine
    if engine is None or not any(sample.images for sample in samples):
        return
    if refusal := image_refusal(engine.target, args):
        checking.error(refusal)
