"""The digits, their split, and the laws of the order."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits

from diffusion_lightning.data import Digits
from diffusion_lightning.data.base import Bytes, Order, held_out
from diffusion_lightning.metrics.evaluation import digest, hashed


def test_the_split_is_fixed_stratified_and_whole() -> None:
    (x, y), (x_held, y_held) = Digits().read("train"), Digits().read("val")
    assert (len(x), len(x_held)) == (1500, 297)
    share = torch.bincount(y_held).double() / torch.bincount(torch.cat([y, y_held]))
    assert ((share - 297 / 1797).abs() * torch.bincount(torch.cat([y, y_held])) < 1).all()
    original = torch.from_numpy(load_digits().images).to(torch.uint8).flatten(1)
    both = torch.cat([x, x_held]).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, original.tolist()))
    assert torch.equal(Digits(seed=5).read("train")[0], x)


def test_pixels_are_v_over_8_minus_1() -> None:
    data = Digits()
    v = data.read("train")[0]
    assert torch.equal(data.reference("train")[:], v.float() / 8 - 1)
    assert data.reference("train").shape[1:] == data.shape
    assert data.reference()[:].min() == -1
    assert data.reference()[:].max() == 1


def test_a_reference_is_its_images_in_slices() -> None:
    reference = Digits().reference("val")
    assert len(reference) == len(reference[:]) == 297
    assert torch.equal(torch.cat([reference[first : first + 50] for first in range(0, 297, 50)]), reference[:])
    assert torch.equal(reference[[7, 3]], reference[:][[7, 3]])
    assert hashed(reference, 50) == digest(reference) == hashed(reference[:])


@pytest.mark.parametrize("amount", [0.001, 0.2, 0.5, 1, 7, 29])
def test_what_is_held_out_is_in_proportion_and_evenly_spaced(amount: float) -> None:
    y = torch.tensor([0, 2, 2] * 10)
    held = held_out(y, amount)
    n = int(held.sum())
    assert n == (amount if amount >= 1 else max(1, round(30 * amount)))
    for k, size in ((0, 10), (2, 20)):
        of_class = held[y == k]
        assert abs(int(of_class.sum()) - n * size / 30) < 1
        gaps = of_class.nonzero()[:, 0].diff()
        assert len(gaps) < 2 or gaps.max() - gaps.min() <= 1


def batches(order: Order, epoch: int = 0) -> list[torch.Tensor]:
    order.step = lambda: epoch * (order.used // order.whole)
    drawn = list(order)
    assert len(drawn) == len(order)
    assert all(e == epoch for e, _ in drawn)
    return [indices for _, indices in drawn]


@pytest.mark.parametrize(("world", "accumulate", "size"), [(1, 1, 64), (2, 1, 32), (1, 2, 32), (4, 1, 16), (2, 2, 16)])
def test_global_batches_do_not_depend_on_the_devices(world: int, accumulate: int, size: int) -> None:
    """Global batch k, in its own order, is the same 64 images however it is shared among devices and micro-batches."""
    reference = batches(Order(1500, 64, 0, 1, seed=3), epoch=2)
    ranks = [batches(Order(1500, size, rank, world, accumulate, seed=3), epoch=2) for rank in range(world)]
    assert len(reference) == 1500 // 64
    for k, expected in enumerate(reference):
        parts = [ranks[rank][k * accumulate + micro] for micro in range(accumulate) for rank in range(world)]
        assert torch.equal(torch.cat(parts), expected)


def test_epochs_differ_and_repeat_nothing() -> None:
    order = Order(1500, 64, 0, 1, seed=0)
    first, second = torch.cat(batches(order, 0)), torch.cat(batches(order, 1))
    assert len(first.unique()) == len(first) == 1472
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(batches(order, 0)), first)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("step", [0, 1, 22, 23, 30, 45, 46])
def test_the_step_is_the_place_in_the_data(step: int, world: int, accumulate: int) -> None:
    """What is left of step's epoch, on any number of devices, is what an undisturbed run would see from there on."""
    stream = [b for epoch in range(3) for b in batches(Order(1500, 64, 0, 1, seed=3), epoch)]
    size = 64 // world // accumulate
    ranks = [list(Order(1500, size, rank, world, accumulate, 3, lambda: step)) for rank in range(world)]
    left = [
        torch.cat([ranks[r][i + m][1] for m in range(accumulate) for r in range(world)])
        for i in range(0, len(ranks[0]), accumulate)
    ]
    assert len(left) == 23 - step % 23
    assert all(torch.equal(a, b) for a, b in zip(left, stream[step:], strict=False))
    order = Order(1500, size, 0, world, accumulate, 3)
    assert [order.index(step, i) for i in (0, 17, 63)] == [int(stream[step][i]) for i in (0, 17, 63)]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 297])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_image_once(n: int, world: int) -> None:
    seen = [i for rank in range(world) for b in batches(Order(n, 16, rank, world)) for i in b.tolist()]
    assert sorted(seen) == list(range(n))


def test_flips_follow_the_epoch_and_the_image() -> None:
    x = torch.arange(200 * 4, dtype=torch.int64).view(200, 1, 2, 2)
    data = Bytes(x, torch.zeros(200), flip_seed=0)
    everything, some = torch.arange(200), torch.tensor([5, 17, 120])
    flipped = (data[0, everything][0] != x).flatten(1).any(1)
    assert 60 < flipped.sum() < 140
    assert torch.equal(data[0, some][0], data[0, everything][0][some])
    assert not torch.equal((data[1, everything][0] != x).flatten(1).any(1), flipped)
    mirrored = torch.where(flipped[:, None, None, None], x.flip(3), x)
    assert torch.equal(data[0, everything][0], mirrored)


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        Digits(batch_size=0)
    with pytest.raises(ValueError, match=r"one step takes 1501 images .* but the training set has 1500"):
        Digits(batch_size=1501).setup("fit")


def test_batches_are_made_on_a_gpu_where_the_images_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers, and where they take no more than a quarter of what is free; `meta` stands for the GPU."""
    images = 1500 * 64
    gpu = SimpleNamespace(type="cuda")
    for free, workers, resident in ((4 * images, 0, True), (4 * images - 4, 0, False), (4 * images, 1, False)):
        data = Digits(num_workers=workers)
        data.setup("fit")
        n = data.splits["train"][0].numel()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free, n=n: (free * n // images, 0))
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=gpu))  # type: ignore[assignment]
        assert (data._place(data.splits["train"][0]) is gpu) == resident
    monkeypatch.setattr(Digits, "_place", lambda self, images: torch.device("meta"))
    data = Digits(flip=True)
    data.setup("fit")
    loader = data.train_dataloader()
    assert not loader.pin_memory
    image, y = next(iter(loader))
    assert image.device.type == y.device.type == "meta"
    assert (image.shape, y.shape) == ((128, 1, 8, 8), (128,))
