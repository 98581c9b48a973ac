"""Power-function averages: their lengths, their updates, and what snapshots of two of them make of a third."""

import pytest
import torch

from diffusion_lightning.callbacks.base import profiles

F64 = torch.float64


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.972), (0.10, 6.9372), (0.15, 3.5579)])
def test_the_exponents_of_the_paper(sigma_rel: float, gamma: float) -> None:
    found = profiles.exponent(sigma_rel)
    assert found == pytest.approx(gamma, rel=1e-4)
    assert profiles.deviation(found) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.2887, 1.0, float("nan")])
def test_a_length_that_no_average_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match="sigma_rel is"):
        profiles.exponent(sigma_rel)


@pytest.mark.parametrize("gamma", [0.5, 6.94])
def test_the_update_is_the_profile(gamma: float) -> None:
    """The weight of step k's value in the average of step n is (k/n)^(γ+1) - ((k-1)/n)^(γ+1)."""
    n = 50
    share = torch.zeros(n, dtype=F64)
    for k in range(1, n + 1):
        beta = profiles.decay(gamma, k)
        share *= beta
        share[k - 1] += 1 - beta
    reach = (torch.arange(n + 1, dtype=F64) / n) ** (gamma + 1)
    torch.testing.assert_close(share, reach[1:] - reach[:-1], rtol=1e-10, atol=1e-14)


def test_overlaps_are_the_integrals() -> None:
    gammas, ends = torch.tensor([0.7, 6.94, 3.0]), torch.tensor([5.0, 8.0, 8.0])
    x = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000 * 8
    f = torch.stack([torch.where(x < t, (g + 1) / t * (x / t) ** g, 0.0) for g, t in zip(gammas, ends, strict=True)])
    numeric = f @ f.T * (8 / 400_000)
    torch.testing.assert_close(profiles.overlaps(gammas, ends, gammas, ends), numeric, rtol=1e-4, atol=0)


def closed_form(gamma: float, t: float) -> float:
    """The average of θ(τ) = √τ: (γ + 1)/(γ + 1.5)·√t."""
    return (gamma + 1) / (gamma + 1.5) * t**0.5


@pytest.mark.parametrize("sigma_rel", [0.03, 0.08, 0.15, 0.20])
def test_twenty_snapshots_of_two_tracks_make_any_length(sigma_rel: float) -> None:
    tracks = [profiles.exponent(0.05), profiles.exponent(0.10)]
    kept = [(gamma, step) for gamma in tracks for step in range(50, 1001, 50)]
    gamma = profiles.exponent(sigma_rel)
    x = profiles.weights(kept, [(gamma, 1000)])[:, 0]
    values = torch.tensor([closed_form(g, t) for g, t in kept], dtype=F64)
    assert float(x @ values) == pytest.approx(closed_form(gamma, 1000), rel=1e-3)
    assert float(x.sum()) == pytest.approx(1, abs=1e-12)


def test_a_track_is_made_of_itself() -> None:
    kept = [(profiles.exponent(s), step) for s in (0.05, 0.10) for step in (100, 200, 300)]
    found = profiles.weights(kept, kept)
    torch.testing.assert_close(found, torch.eye(6, dtype=F64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("step", [0, 301])
def test_an_average_later_than_the_last_snapshot_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"at step {step} is asked for, but the snapshots end at step 300"):
        profiles.weights([(6.9, 300)], [(6.9, step)])
