"""What the engine is told about sampling: parameters, limits and seeds of rollouts and evaluations. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from slime_core.sample import Sample


@dataclass(frozen=True)
class Parameters:
    """Sampling parameters of one rollout or evaluation.

    Attributes:
        fixed: what is the same for all samples, for `InferenceEngine.generate`.
        max_response_len: longest response in tokens.
        max_context_len: longest prompt and response in tokens; None: any.
    """

    fixed: dict[str, Any]
    max_response_len: int
    max_context_len: int | None

    def of(self, sample: Sample, seed: int) -> dict[str, Any]:
        """The parameters with which a sample's response is generated, or goes on.

        `max_new_tokens` is what its limits leave, which may be 0 or less.
        """
        room = self.max_response_len - sample.response_length
        if self.max_context_len is not None:
            room = min(room, self.max_context_len - len(sample.tokens))
        return {**self.fixed, "max_new_tokens": room, "seed": seed}


def rollout_parameters(args: Any) -> Parameters:
    """Those of `--rollout-*`."""
    return Parameters(
        _fixed(args, args.rollout_temperature, args.rollout_top_p, args.rollout_top_k),
        args.rollout_max_response_len,
        args.rollout_max_context_len,
    )


def eval_parameters(args: Any) -> Parameters:
    """Those of `--eval-*`; what is not given is as in rollouts."""
    fixed = _fixed(
        args,
        _either(args.eval_temperature, args.rollout_temperature),
        _either(args.eval_top_p, args.rollout_top_p),
        _either(args.eval_top_k, args.rollout_top_k),
    )
    if args.eval_min_new_tokens:
        fixed["min_new_tokens"] = args.eval_min_new_tokens
    return Parameters(
        fixed,
        _either(args.eval_max_response_len, args.rollout_max_response_len),
        _either(args.eval_max_context_len, args.rollout_max_context_len),
    )


def prompt_limit(args: Any, evaluation: bool = False) -> tuple[int | None, str]:
    """(longest prompt in tokens or None, the option that says so). A prompt must leave room for one token."""
    found: list[tuple[int, str]] = []
    for name, less in (("max_prompt_len", 0), ("max_context_len", 1)):
        for prefix in ("eval_", "rollout_") if evaluation else ("rollout_",):
            value = getattr(args, prefix + name)
            if value is not None:
                found.append((value - less, "--" + (prefix + name).replace("_", "-")))
                break
    return min(found, default=(None, ""))  # type: ignore[return-value]


def seed_of(*parts: Any) -> int:
    """A seed for what `parts` name, in [0, 2^48): the same in every process and Python version."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def _fixed(args: Any, temperature: float, top_p: float, top_k: int) -> dict[str, Any]:
    fixed: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    if args.rollout_stop:
        fixed["stop"] = list(args.rollout_stop)
    if args.rollout_stop_token_ids is not None:
        fixed["stop_token_ids"] = list(args.rollout_stop_token_ids)
    return fixed


def _either(value: Any, default: Any) -> Any:
    return default if value is None else value
