"""Philox against its published answers, and the draws against what they promise."""

import math

import pytest
import torch

from diffusion_lightning import random


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], answer: list[int]) -> None:
    c = torch.tensor(counter)[:, None]
    even, odd = random.philox(c[::2], c[1::2], torch.tensor(key)[:, None])
    assert [int(even[0]), int(odd[0]), int(even[1]), int(odd[1])] == answer


def test_words_follow_the_documented_counter() -> None:
    """Word 4·block + j of sample i is output j of counter (block, i, step, crc32(purpose)) under the seed's words."""
    import zlib

    seed, step, sample = 0x1234_5678_9ABC, 7, 3
    found = random.words(8, seed, "what for", step, torch.tensor([sample]))[0].tolist()
    for block in range(2):
        c = torch.tensor([block, sample, step, zlib.crc32(b"what for")])[:, None]
        key = torch.tensor([seed & 0xFFFFFFFF, seed >> 32])[:, None]
        even, odd = random.philox(c[::2], c[1::2], key)
        assert found[4 * block : 4 * block + 4] == [int(even[0]), int(odd[0]), int(even[1]), int(odd[1])]


def test_a_sample_does_not_depend_on_its_company() -> None:
    many = random.normal((3, 5), 11, "noise", 4, torch.arange(10))
    one = random.normal((3, 5), 11, "noise", 4, torch.tensor([6]))
    assert torch.equal(many[6], one[0])
    longer = random.normal((40,), 11, "noise", 4, torch.tensor([6]))
    assert torch.equal(longer[0, :15].view(3, 5), one[0])


def test_seed_purpose_step_and_sample_all_matter() -> None:
    def draw(seed: int = 1, purpose: str = "a", step: int = 2, sample: int = 3) -> torch.Tensor:
        return random.words(8, seed, purpose, step, torch.tensor([sample]))

    draws = [draw(), draw(seed=2), draw(seed=1 + 2**32), draw(purpose="b"), draw(step=3), draw(sample=4)]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert not torch.equal(a, b)


def test_a_seed_each_is_the_same_as_that_seed_for_all() -> None:
    seeds = torch.tensor([5, 2**40 + 1, 2**62])
    together = random.normal((7,), seeds, "noise", 1, torch.zeros(3))
    for i, seed in enumerate(seeds.tolist()):
        assert torch.equal(together[i], random.normal((7,), seed, "noise", 1, torch.zeros(1))[0])


def test_normal_moments_within_three_standard_errors() -> None:
    z = random.normal((100,), 0, "moments", 0, torch.arange(20_000)).double().flatten()
    n = len(z)
    assert abs(z.mean()) < 3 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 3 * math.sqrt(2 / n)
    assert abs(z.pow(4).mean() - 3) < 3 * math.sqrt(96 / n)
    assert torch.isfinite(z).all()
    assert z.abs().max() > 4.5
    neighbours = (z[:-1] * z[1:]).mean()
    assert abs(neighbours) < 3 / math.sqrt(n)


def test_uniform_stays_inside_the_open_interval() -> None:
    u = random.uniform((100,), 0, "uniform", 0, torch.arange(10_000)).double()
    assert 0 < u.min()
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 3 * math.sqrt(1 / 12 / u.numel())


def test_the_extreme_words_stay_inside() -> None:
    ends = random._unit(torch.tensor([0, 0xFFFFFFFF]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]


def test_integers_are_uniform_on_their_range() -> None:
    k = random.integers(1, 11, 3, "integers", 0, torch.arange(100_000))
    counts = torch.bincount(k, minlength=11)[1:].double()
    assert k.min() == 1
    assert k.max() == 10
    chi2 = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi2 < 27.9  # 99.9% of χ² with 9 degrees of freedom


def test_permutation() -> None:
    p = random.permutation(1500, 0, "order", 3)
    assert torch.equal(p.sort().values, torch.arange(1500))
    assert torch.equal(p, random.permutation(1500, 0, "order", 3))
    assert not torch.equal(p, random.permutation(1500, 0, "order", 4))
    assert not torch.equal(p, random.permutation(1500, 1, "order", 3))


def test_compiles_to_the_same_words() -> None:
    sample = torch.arange(4)
    graph = torch.compile(lambda s: random.words(6, 9, "noise", 2, s), backend="aot_eager", fullgraph=True)
    assert torch.equal(graph(sample), random.words(6, 9, "noise", 2, sample))


@pytest.mark.parametrize("seed", [0, 42, 2**40 + 3])
def test_the_words_are_torchs_own_where_torch_has_them(seed: int) -> None:
    own = pytest.importorskip("torch.func._random")
    theirs = own.bits(own.key(seed), (12,), dtype=torch.uint32).long()
    block = torch.arange(3)
    key = torch.tensor([seed & 0xFFFFFFFF, seed >> 32])[:, None]
    even, odd = random.philox(torch.stack([block, 0 * block]), torch.zeros(2, 3, dtype=torch.long), key)
    assert torch.equal(random._lines(even[:, None], odd[:, None], 12)[0], theirs)


def test_a_devices_generator_is_seeded_as_pytorch_does() -> None:
    found = []
    for seed in (torch.manual_seed, lambda state: random.seed_generator(torch.device("cpu"), state)):
        seed(2**62 + 3)
        found.append(torch.randn(5))
    assert torch.equal(*found)


@pytest.mark.parametrize(("first", "n", "size"), [(0, 10, 4), (3, 10, 4), (4, 8, 4), (5, 1, 8), (7, 9, 1), (0, 3, 100)])
def test_blocks_hold_each_number_once_and_are_cut_at_multiples_of_their_size(first: int, n: int, size: int) -> None:
    found = list(random.blocks(first, n, size))
    assert [i for a, count in found for i in range(a, a + count)] == list(range(first, first + n))
    assert all(a % size == 0 for a, _ in found[1:])
    assert all(1 <= count <= size for _, count in found)
    shared = [list(random.blocks(first, n, size, rank, 3)) for rank in range(3)]
    assert sorted(block for blocks in shared for block in blocks) == found
