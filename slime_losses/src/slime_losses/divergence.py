"""Ratios and KL divergences from log-probs. Used by every policy loss and by the KL penalty of advantage estimators."""

from __future__ import annotations

from torch import Tensor

LARGEST_EXPONENT = 20.0


def bounded_exp(exponent: Tensor) -> Tensor:
    """exp, of exponents limited to ±20 (factors between 2e-9 and 5e8), so that no difference of log-probs overflows.

    Beyond the limit the gradient is 0: such a token says nothing about the policy that sampled it.
    """
    return exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp()


def approximate_kl(log_probs: Tensor, base: Tensor, kind: str) -> Tensor:
    """Estimates of KL(p ‖ base) from tokens that p sampled: (T,), one for each token (http://joschu.net/blog/kl-approx.html).

    With x = log p - log base:

    * "k1": x. Unbiased; may be negative.
    * "k2": x² / 2. Never negative; the only one whose gradient estimates the gradient of the KL.
    * "k3": exp(-x) - 1 + x. Unbiased and never negative.
    * "low_var_kl": k3, limited to ±10.
    """
    difference = log_probs - base
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    estimate = bounded_exp(-difference) - 1 + difference
    return estimate.clamp(-10, 10) if kind == "low_var_kl" else estimate
