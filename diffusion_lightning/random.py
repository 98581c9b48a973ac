"""Random numbers that are functions: (seed, purpose, step, sample) in, the same draws out.

Philox4x32-10 turns a 128-bit counter and a 64-bit key into four 32-bit words. Here

    key     = (seed's low word, seed's high word)
    counter = (block, sample, step, crc32(purpose)),    word 4·block + j of a sample being output j,

so that every draw can be made on its own, in any order, on any device: nothing is consumed, and nothing has to be
saved to continue. Words are exact integers and equal on every device; normals are equal to float32 rounding.

`sample` is a tensor (B,) of sample numbers, `seed` an integer or a tensor (B,), `step` an integer; each below 2³²,
seeds below 2⁶³. `purpose` is any string: draws for different purposes are independent.

Paper: Parallel random numbers: as easy as 1, 2, 3. Salmon, Moraes, Dror, Shaw, 2011 (doi 10.1145/2063384.2063405).
"""

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
SEEDS, NUMBERS = 2**63, 2**32  # how many there are of each, from 0 on; others' draws would be those of one of these
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(even: Tensor, odd: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Ten rounds of Philox4x32 on counters `(c0, c2)`, `(c1, c3)`, each stacked in dimension 0 of an int64 tensor.

    With h, l the high and low word of an integer product:
    c0' = h(M1·c2) ^ c1 ^ k0, c1' = l(M1·c2), c2' = h(M0·c0) ^ c3 ^ k1, c3' = l(M0·c0); then k += Weyl constants.
    An int64 product of two 32-bit words wraps, which leaves all its 64 bits right.

    Args:
        even: (2, *) words c0 and c2.
        odd: (2, *) words c1 and c3.
        key: (2, *) words k0 and k1.

    Returns:
        The output words in the same layout.
    """
    column = (2,) + (1,) * (even.ndim - 1)
    multipliers, weyl = (_on(even.device, pair).view(column) for pair in (MULTIPLIERS, WEYL))
    for _ in range(10):
        product = even * multipliers
        even = ((product >> 32) & MASK).flip(0) ^ odd ^ key
        odd = (product & MASK).flip(0)
        key = (key + weyl) & MASK
    return even, odd


def check_seed(seed: int, of: str = "the seed") -> int:
    """Return the seed.

    Raises:
        ValueError: if it is not a whole number in 0 … 2⁶³ - 1; `of` names what it seeds.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ValueError(f"{of} is {seed}, but a seed is a whole number from 0 to 2^63 - 1: give one of these")
    return seed


def check_numbers(first: int, n: int) -> None:
    """Raise ValueError if there are no samples number `first` … `first + n - 1`."""
    if not 0 <= first < first + n <= NUMBERS:
        raise ValueError(
            f"{n} samples from number {first} on are none, or not all among the numbers 0 … 2^32 - 1 that samples "
            "have: give n ≥ 1 and first ≥ 0, and not more in all"
        )


def blocks(first: int, n: int, size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, int]]:
    """The sample numbers `first` … `first + n - 1` cut at multiples of a size: of each block its first, and how many.

    Of several ranks each has every `world`-th block, from its own rank on.
    """
    bounds = [first, *range(first - first % size + size, first + n, size), first + n]
    for a, b in list(pairwise(bounds))[rank::world]:
        yield a, b - a


_fused: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


def fuse() -> None:
    """From now on a GPU makes the words in one kernel, by torch.compile: whole numbers, hence the same words."""
    global _fused
    _fused = _fused or torch.compile(philox, dynamic=True)


def _on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Whole numbers on a device, without synchronizing with it."""
    return torch.tensor(numbers).to(device, non_blocking=True)


@torch.compiler.assume_constant_result
def _code(purpose: str) -> int:
    return zlib.crc32(purpose.encode())


def _blocks(n: int, seed: int | Tensor, purpose: str, step: int, sample: Tensor) -> tuple[Tensor, Tensor]:
    """`ceil(n/4)` blocks a sample, as `philox` returns them: words (0, 2) and (1, 3), each (2, B, ceil(n/4))."""
    if not 0 <= step < NUMBERS:
        raise ValueError(f"draws are made for the steps 0 … 2^32 - 1, but this is step {step}: start another run")
    blocks = -(-n // 4)
    device = sample.device
    sample = sample.long()
    if isinstance(seed, Tensor):
        seed = seed.to(device).long()
        key = torch.stack([seed & MASK, (seed >> 32) & MASK])[:, :, None]
    else:
        check_seed(seed)
        key = _on(device, [seed & MASK, (seed >> 32) & MASK]).view(2, 1, 1)
    block = torch.arange(blocks, device=device)
    even = torch.stack([block.expand(len(sample), blocks), torch.full_like(block, step).expand(len(sample), blocks)])
    code = torch.full_like(sample, _code(purpose))
    odd = torch.stack([sample & MASK, code])[:, :, None]
    fused = _fused if device.type == "cuda" and not torch.compiler.is_compiling() else None
    return (fused or philox)(even, odd, key)


def _lines(even: Tensor, odd: Tensor, n: int) -> Tensor:
    """(2, B, blocks) twice to (B, n), each block's four numbers side by side."""
    return torch.stack([even, odd]).permute(2, 3, 1, 0).flatten(1)[:, :n]


def words(n: int, seed: int | Tensor, purpose: str, step: int, sample: Tensor) -> Tensor:
    """(B, n) int64: `n` words in [0, 2³²) for each sample."""
    return _lines(*_blocks(n, seed, purpose, step, sample), n)


def _unit(word: Tensor) -> Tensor:
    """A word's upper 23 bits as float32 (w + ½)/2²³, exact, in (0, 1)."""
    return ((word >> 9).float() + 0.5) * 2.0**-23


def uniform(shape: Sequence[int], seed: int | Tensor, purpose: str, step: int, sample: Tensor) -> Tensor:
    """(B, *shape) float32, uniform on (0, 1)."""
    return _unit(words(math.prod(shape), seed, purpose, step, sample)).view(len(sample), *shape)


def normal(shape: Sequence[int], seed: int | Tensor, purpose: str, step: int, sample: Tensor) -> Tensor:
    """(B, *shape) float32, standard normal: Box and Muller's z = √(-2 ln u₁)·(cos 2πu₂, sin 2πu₂).

    With 23 bits in u₁, |z| ≤ 5.8.
    """
    n = math.prod(shape)
    even, odd = _blocks(n, seed, purpose, step, sample)
    radius = (-2.0 * _unit(even).log()).sqrt()
    angle = (2.0 * math.pi) * _unit(odd)
    return _lines(radius * angle.cos(), radius * angle.sin(), n).view(len(sample), *shape)


def integers(low: int, high: int, seed: int | Tensor, purpose: str, step: int, sample: Tensor) -> Tensor:
    """(B,) int64, uniform on low … high - 1: low + ⌊w·(high - low)/2³²⌋, off by at most (high - low)/2³² relative."""
    return low + ((words(1, seed, purpose, step, sample)[:, 0] * (high - low)) >> 32)


def fractions(seed: int | Tensor, purpose: str, step: int, sample: Tensor) -> Tensor:
    """(B,) float64, uniform on (0, 1): (w + ½)/2³²."""
    return (words(1, seed, purpose, step, sample)[:, 0].double() + 0.5) * 2.0**-32


def seeds(seed: int, purpose: str, sample: Tensor) -> Tensor:
    """(B,) int64 in [0, 2⁶³): a seed of its own for each sample."""
    low, high = words(2, seed, purpose, 0, sample).unbind(1)
    return low | ((high >> 1) << 32)


def state(seed: int, purpose: str, *place: int) -> int:
    """An integer in [0, 2⁶³) to seed a generator that keeps state, such as the one that draws dropout masks."""
    digest = hashlib.blake2b(repr((seed, purpose, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seed_generator(device: torch.device, seed: int) -> None:
    """Seeds PyTorch's generators of a device and of the CPU.

    `torch.manual_seed` does so for every kind of device, and keeps its caller's stack for those that are not there.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def generator_state(device: torch.device) -> Tensor:
    """Where PyTorch's generator of a device stands, which draws dropout masks."""
    return _generator(device).get_state()


def set_generator_state(device: torch.device, state: Tensor) -> None:
    """Takes PyTorch's generator of a device back to where it stood: the masks that follow are the same again."""
    _generator(device).set_state(state)


def _generator(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def permutation(n: int, seed: int, purpose: str, step: int) -> Tensor:
    """(n,) int64: the numbers 0 … n - 1 in an order that is a function of (seed, purpose, step)."""
    low, high = words(2, seed, purpose, step, torch.arange(n)).unbind(1)
    return torch.argsort(low | ((high >> 1) << 32), stable=True)


class Draw(NamedTuple):
    """The key of a batch's draws; the purpose of each is given when it is made, as in `draw.normal("eps", like=x_0)`.

    `sample` (B,) are the samples' numbers; `purpose`, such as `training`, is common to all of the draws.
    """

    seed: int | Tensor
    purpose: str
    step: int
    sample: Tensor

    def of(self, what: str) -> tuple[int | Tensor, str, int, Tensor]:
        """The arguments of the functions above, for one purpose."""
        return self.seed, f"{self.purpose}: {what}", self.step, self.sample

    def normal(self, what: str, like: Tensor) -> Tensor:
        """Standard normals of the shape and type of a tensor (B, *), on its device."""
        return normal(like.shape[1:], *self.of(what)).to(like)

    def fractions(self, what: str) -> Tensor:
        """(B,) float64, uniform on (0, 1)."""
        return fractions(*self.of(what))

    def integers(self, what: str, low: int, high: int) -> Tensor:
        """(B,) int64, uniform on low … high - 1."""
        return integers(low, high, *self.of(what))

    def at(self, step: int) -> "Draw":
        """The draws of another step."""
        return self._replace(step=step)
