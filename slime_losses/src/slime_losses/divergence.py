"""Ratios and KL divergences from log-probs, for every policy loss and for the KL penalty of advantage estimators."""

from __future__ import annotations

from torch import Tensor

from slime_core.errors import ArgumentError

LARGEST_EXPONENT = 20.0
"""The largest absolute difference of log-probs that becomes a ratio as it is; larger ones are limited to it."""


def bounded_exp(exponent: Tensor) -> Tensor:
    """Return exp of exponents limited to ±20 (factors between 2e-9 and 5e8), so that no difference of log-probs overflows.

    Beyond the limit the gradient is 0: such a token says nothing about the policy that sampled it.
    """
    return exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()


def approximate_kl(log_probs: Tensor, base: Tensor, kind: str, ratio: Tensor | None = None) -> Tensor:
    """Estimate KL(p ‖ base) from each of the (T,) tokens that p sampled (http://joschu.net/blog/kl-approx.html).

    With x = log p - log base:

    * "k1": x. Unbiased; may be negative.
    * "k2": x² / 2. Never negative; the only one whose gradient estimates the gradient of the KL.
    * "k3": exp(-x) - 1 + x. Unbiased and never negative. An x below -20 counts as -20, without gradient: x alone would pull p
      away from base there.
    * "low_var_kl": k3, limited to ±10.

    Args:
        ratio: (T,) p / q, with gradient, where another policy q sampled the tokens; the estimate is multiplied by it before it is
            limited. The gradient of k1 and k3 then estimates that of the KL, whatever q is, also where q is p itself
            (DeepSeek-V3.2, arXiv 2512.02556, eq. 7).
    """
    difference = log_probs - base
    if kind == "k1":
        estimate = difference
    elif kind == "k2":
        estimate = difference.square() / 2
    else:
        estimate = bounded_exp(-difference) - 1 + difference.clamp(min=-LARGEST_EXPONENT)
    if ratio is not None:
        estimate = ratio * estimate
    return estimate.clamp(-10, 10) if kind == "low_var_kl" else estimate


def needed_for_kl(log_probs: Tensor | None) -> Tensor:
    """Return log-probs that a KL divergence from the reference model is made of.

    Raises:
        ArgumentError: there are none.
    """
    if log_probs is None:
        raise ArgumentError(
            "The KL divergence from the reference model needs log-probs that were not computed. A loss or estimator that "
            "calls one of slime-losses declares with slime_core.contracts.loss.reads what that one reads."
        )
    return log_probs
