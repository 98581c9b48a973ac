"""The variational bound of a test set: sums over its examples, made on each device and put together at the end."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...conditioning.base import Embedded
from ...denoising import Denoiser, Prediction
from ...likelihood import VLB, bits_per_dim, prior
from ...random import Draw

PARTS = ("", "_prior", "_kl", "_decoder")  # of the bound: the whole first


class Found(NamedTuple):
    """Means in bits/dim: of the whole and its `PARTS` (4,), their standard errors (4,), of the terms L_0 … (T,)."""

    mean: Tensor
    error: Tensor
    terms: Tensor


class Bound:
    """The sums that `test` measures.

    Args:
        denoiser: and its schedule.
        vlb: which reverse process.
        levels: values of a pixel.
    """

    def __init__(self, denoiser: Denoiser, vlb: VLB, levels: int) -> None:
        self.denoiser, self.vlb, self.levels = denoiser, vlb, levels
        # Sums over the examples: their number; the value and the square of the whole and of its three parts, in
        # bits/dim; and for each t the terms' sum and number.
        table = denoiser.schedule.alpha_bar
        self._sums = [table.new_zeros(1), table.new_zeros(2, 4), table.new_zeros(2, denoiser.schedule.T)]

    def add(self, x_0: Tensor, c: Embedded, draw: Draw) -> None:
        """Adds examples x_0 (B, C, H, W) under conditions c, or None; `draw` is of their numbers."""
        of_prior = bits_per_dim(prior(self.denoiser.schedule, x_0), x_0[0].numel())
        of_kl, of_decoder = torch.zeros_like(of_prior), torch.zeros_like(of_prior)
        n, parts, terms = self._sums
        for k, (t, count, bits) in enumerate(self._terms(x_0, c, draw)):
            terms.index_add_(1, t - 1, torch.stack([bits, torch.ones_like(bits)]))
            if k == 0:
                of_decoder = bits
            else:
                of_kl += count * bits
        values = torch.stack([of_prior + of_kl + of_decoder, of_prior, of_kl, of_decoder], 1)
        n += len(x_0)
        parts += torch.stack([values, values.square()]).sum(1)

    def _terms(self, x_0: Tensor, c: Embedded, draw: Draw) -> Iterator[tuple[Tensor, float, Tensor]]:
        """Times (B,), what they count in the sum, and their terms (B,) in bits/dim, in float64."""
        schedule, exact = self.denoiser.schedule, x_0.to(self.denoiser.schedule.alpha_bar)
        for k, (t, count) in enumerate(self.vlb.draws(schedule, draw)):
            x_t = schedule.q_sample(x_0, t, draw.at(k).normal("eps", x_0))
            x_hat, eps, var_mix, _ = self.denoiser(x_t, t, c)
            prediction = Prediction(x_hat.to(exact), eps.to(exact), None if var_mix is None else var_mix.to(exact))
            t = t.to(exact.device)
            nats = self.vlb.term(schedule, exact, t, prediction, self.levels)
            yield t, count, bits_per_dim(nats, x_0[0].numel())

    def found(self, total: Callable[[Tensor], Tensor]) -> Found:
        """The means over all devices, whose sums `total` adds up."""
        n, parts, terms = map(total, self._sums)
        mean, square = parts / n
        error = ((square - mean.square()).clamp(min=0) / (n - 1).clamp(min=1)).sqrt()
        return Found(mean, error, terms[0] / terms[1])

    def log(self, module: Any) -> Tensor:
        """Logs the means over all devices as `test/bits_per_dim…`; returns the terms (T,)."""
        found = self.found(lambda sums: module.trainer.strategy.reduce(sums, reduce_op="sum"))
        for part, value in zip(PARTS, found.mean, strict=True):
            module.log(f"test/bits_per_dim{part}", value)
        module.log("test/bits_per_dim_error", found.error[0])
        return found.terms
