"""Averages of the weights whose length is chosen after the training: power functions, and sums of snapshots of them.

    θ̄_γ(t) = ∫_0^t f_γ(τ, t)·θ(τ) dτ,    f_γ(τ, t) = (γ + 1)/t·(τ/t)^γ,    θ̄_k = β_k·θ̄_{k-1} + (1 - β_k)·θ_k

with β_k = (1 - 1/k)^(γ+1) after optimizer step k = 1, 2, …: the average's length is a fraction of the training so far,
and the initial weights never count. Its relative deviation is σ_rel² = (γ + 1)/((γ + 2)²·(γ + 3)). Snapshots of two
such averages span the profiles of others: the nearest sum, in ∫ (f - Σ x_i·f_i)² dτ, solves a small linear system.

Paper: Analyzing and improving the training dynamics of diffusion models. Karras et al., 2023, arXiv 2312.02696,
section 3 and appendix C.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST = 12**-0.5  # σ_rel of γ = 0, the mean of all weights


def exponent(sigma_rel: float) -> float:
    """γ of a relative deviation: the largest root of γ³ + 7γ² + (16 - σ_rel⁻²)·γ + 12 - σ_rel⁻².

    Raises:
        ValueError: if no average is so long, or it has no length.
    """
    if not 0 < sigma_rel < LONGEST:
        raise ValueError(
            f"sigma_rel is {sigma_rel}, but the mean of all weights has {LONGEST:.4f}: give one above 0 and below it"
        )
    inverse = sigma_rel**-2
    companion = torch.tensor([[-7.0, inverse - 16, inverse - 12], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    return float(torch.linalg.eigvals(companion).real.max())


def deviation(gamma: float) -> float:
    """σ_rel of γ."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


def decay(gamma: float, step: int) -> float:
    """β_k, the weight of the average so far in that of step k ≥ 1; 0 at the first."""
    return (1 - 1 / step) ** (gamma + 1)


def overlaps(gamma_a: Tensor, t_a: Tensor, gamma_b: Tensor, t_b: Tensor) -> Tensor:
    """∫ f_a(τ)·f_b(τ) dτ for each pair (A, B) of profiles of γ and end t, (A,) and (B,), float64.

    (γ_a + 1)·(γ_b + 1)·r^e/((γ_a + γ_b + 1)·max(t_a, t_b)), r = t_a/t_b, e = γ_b if t_a < t_b, else -γ_a.
    """
    gamma_a, t_a = gamma_a.double()[:, None], t_a.double()[:, None]
    gamma_b, t_b = gamma_b.double()[None], t_b.double()[None]
    power = torch.where(t_a < t_b, gamma_b, -gamma_a)
    longest = torch.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** power / ((gamma_a + gamma_b + 1) * longest)


def weights(kept: Sequence[tuple[float, int]], wanted: Sequence[tuple[float, int]]) -> Tensor:
    """(K, W) float64: how much of each kept average makes each wanted one; each column sums to 1.

    Args:
        kept: γ and step of each snapshot.
        wanted: γ and step of each average to make, no later than the last snapshot.

    Raises:
        ValueError: if there is no snapshot at or after a wanted step.
    """
    last = max((step for _, step in kept), default=0)
    for _, step in wanted:
        if not 0 < step <= last:
            raise ValueError(f"an average at step {step} is asked for, but the snapshots end at step {last}")
    gamma, t = torch.tensor(kept, dtype=torch.float64).T
    gamma_w, t_w = torch.tensor(wanted, dtype=torch.float64).T
    found = torch.linalg.solve(overlaps(gamma, t, gamma, t), overlaps(gamma, t, gamma_w, t_w))
    return found / found.sum(0)
