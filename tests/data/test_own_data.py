"""A user's own loaders and sets: what a batch may look like, and what is refused, with a sentence, before training."""

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from diffusion_lightning.callbacks import FiniteLoss, LossByTimestep, Progress, Throughput
from diffusion_lightning.cli import main
from diffusion_lightning.cli.entry import _explained
from diffusion_lightning.conditioning import ClassLabels, Conditioner
from diffusion_lightning.data import Arrays, ImageFolder
from diffusion_lightning.data.base import Images, Order
from diffusion_lightning.data.base.order import even
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.modules.base.batches import Feed, size
from diffusion_lightning.objectives import LossAware, Stratified, TimestepSampler
from diffusion_lightning.schedules import Linear

from ..conftest import BARE, small_config

SHAPE = (2, 4, 3)
# Black and white: floats of every precision and bytes have both.
X = (torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float() * 2 - 1
Y = torch.arange(8) % 3


class Net(nn.Module):
    """A convolution, which sees the condition as a shift."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.layer(x_t)
        return h if c is None else h + c[:, : h.shape[1], None, None]


class Batches(IterableDataset):
    """These batches, as they are."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Spy(Callback):
    def __init__(self) -> None:
        self.train: list[dict[str, Tensor]] = []
        self.val: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.train.append({**outputs, "step": torch.tensor(trainer.global_step)})

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.val.append(outputs)


def loader(*batches: Any) -> DataLoader:
    return DataLoader(Batches(*batches), batch_size=None, collate_fn=lambda batch: batch)


def model(conditional: bool = True, timesteps: TimestepSampler | None = None) -> Diffusion:
    torch.manual_seed(0)
    conditioner = ClassLabels(3, 4, dropout=0.1) if conditional else None
    return Diffusion(Net(), Linear(50), SHAPE, conditioner=conditioner, timesteps=timesteps)


def trainer(folder: Path, *callbacks: Callback, **kwargs: Any) -> Trainer:
    return Trainer(**{
        "default_root_dir": folder, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "callbacks": list(callbacks), "max_epochs": 1,
        **kwargs,
    })  # fmt: skip


def taken(batch: Any, stage: str = "training", conditional: bool = True) -> tuple[Tensor, Any]:
    """What a step of this stage takes of a batch."""
    module, given = model(conditional), loader(batch)
    one: Any = SimpleNamespace(train_dataloader=given, val_dataloaders=given, test_dataloaders=given)
    module._trainer = one
    return Feed().take(module, next(iter(given)), stage)


PLAIN: dict[str, Any] = {
    "a tuple": (X, Y),
    "a list": [X, Y],
    "a tuple with more behind": (X, Y, ["names"] * 8),
    "a dict of image and label": {"image": X, "label": Y, "id": torch.arange(8)},
    "a dict of images and labels": {"labels": Y, "images": X},
    "a dict of pixel_values and labels": {"pixel_values": X, "labels": Y},
    "a dict of img and y": {"img": X, "y": Y},
    "a dict of Image and Class": {"Image": X, "Class": Y},
    "labels of shape (B, 1)": (X, Y[:, None]),
    "labels as bytes": (X, Y.to(torch.uint8)),
    "labels as int32 of shape (B, 1)": (X, Y[:, None].int()),
    "images as bytes": (((X + 1) * 127.5).to(torch.uint8), Y),
    "images as int64 from 0 to 255": (((X + 1) * 127.5).long(), Y),
    "images as float64": (X.double(), Y),
    "images as float16": (X.half(), Y),
    "images not contiguous": (X.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), Y),
}


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("stage", ["training", "validation", "test"])
@pytest.mark.parametrize("batch", PLAIN.values(), ids=PLAIN.keys())
def test_a_batch_with_a_plain_meaning_is_taken_as_image_and_label(batch: Any, stage: str) -> None:
    image, y = taken(batch, stage)
    torch.testing.assert_close(image, X, rtol=0, atol=0)  # the dtype too
    torch.testing.assert_close(y, Y, rtol=0, atol=0)
    assert size(batch) == 8


ALONE: dict[str, Any] = {
    "a tensor": X,
    "a tuple of one": (X,),
    "a list of one": [X],
    "a dict": {"image": X},
    "bytes": (X > 0).byte() * 255,
    "labels that are texts": (X, ["a"] * 8),
}


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("batch", ALONE.values(), ids=ALONE.keys())
def test_images_alone_are_taken_by_a_model_without_a_condition(batch: Any) -> None:
    image, _ = taken(batch, conditional=False)
    torch.testing.assert_close(image, X, rtol=0, atol=0)
    assert size(batch) == 8


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("name", ["a dict of pixel_values and labels", "labels of shape (B, 1)", "a tensor"])
def test_such_a_batch_trains_validates_and_tests_with_every_callback(name: str, tmp_path: Path) -> None:
    batch, conditional = (PLAIN | ALONE)[name], name in PLAIN
    found = []
    for given in (batch, (X, Y)):
        module = model(conditional)
        one = trainer(tmp_path, Progress(), Throughput(peak=1.0), LossByTimestep(), FiniteLoss())
        one.fit(module, loader(given), loader(given))
        assert module.global_step == 1
        found.append(one.test(module, loader(given), verbose=False)[0])
    assert found[0] == found[1]


def with_one(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[3, 0, 0, 0] = value
    return x


REFUSED: dict[str, tuple[Any, str]] = {
    "floats in [0, 1]": (((X + 1) / 2, Y), r"float32 from 0 to 1, which is \[0, 1\], .* give 2·x - 1"),
    "floats in [0.05, 0.4]": ((0.05 + (X + 1) * 0.175, Y), r"which is \[0, 1\]"),
    "floats in 0 … 255": (((X + 1) * 127.5, Y), r"from 0 to 255, but the model takes \[-1, 1\]: give x/127.5 - 1"),
    "floats scaled by mean and deviation": ((X * 2.1 + 0.3, Y), r"from -1.8 to 2.4, .*: scale them by fixed numbers"),
    "an infinite pixel": ((with_one(X, float("inf")), Y), "image 3 of the first .* not finite"),
    "a pixel that is no number": ((with_one(X, float("nan")), Y), "image 3 of the first .* not finite"),
    "whole numbers beyond bytes": ((((X + 1) * 200).long(), Y), "from 0 to 400, but whole numbers are bytes 0 … 255"),
    "whole numbers below 0": (((X * 100).int(), Y), "int32 from -100 to 100, but whole numbers are bytes"),
    "bytes 0 and 1": (((X > 0).byte(), Y), "uint8 from 0 to 1, but bytes are 0 … 255"),
    "true and false": ((X > 0, Y), "images of the first .* are bool"),
    "complex numbers": ((X.to(torch.complex64), Y), "images of the first .* are complex64"),
    "channels last": ((X.permute(0, 2, 3, 1), Y), r"shape \[8, 4, 3, 2\], .* put the channels first"),
    "another size": ((torch.cat([X, X], 3), Y), r"shape \[8, 2, 4, 6\], but the model takes \[B, 2, 4, 3\]: set the"),
    "no channels": ((X[:, 0], Y), r"shape \[8, 4, 3\], but the model takes"),
    "one image without a batch": ((X[0], Y[:1]), "let the loader make batches, by its batch_size"),
    "no image": ((X[:0], Y[:0]), "let no batch be empty"),
    "an empty tuple": ((), "holds nothing, but no images|holds nothing"),
    "images of numpy": ((X.numpy(), Y), "are a ndarray, but a model takes one tensor"),
    "a list of images": ((list(X), Y), "are a list, but a model takes one tensor"),
    "a dict of other keys": ({"photo": X, "kind": Y}, "holds the keys photo, kind, but no images: name them image"),
    "no labels": (X, "holds images alone, but the conditioner is ClassLabels"),
    "a dict without labels": ({"image": X, "kind": Y}, "the keys image, kind, but the conditioner is ClassLabels"),
    "too few labels": ((X, Y[:7]), "has 8 images, but 7 labels"),
    "a label out of range": ((X, torch.where(Y == 2, 9, Y)), "a label is 9, but the model has 3 classes"),
    "a label below 0": ((X, Y - 1), "a label is -1, but the model has 3 classes"),
    "labels as floats": ((X, Y.double()), r"labels are float64 of shape \[8\], but a class is one whole number"),
    "labels as floats of shape (B, 1)": ((X, Y[:, None].float()), r"labels are float32 of shape \[8, 1\]"),
    "one-hot labels": ((X, torch.nn.functional.one_hot(Y)), r"labels are int64 of shape \[8, 3\]"),
    "labels as texts": ((X, ["a"] * 8), "labels are a list, but a class is one whole number"),
}  # fmt: skip


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("stage", ["training", "validation", "test"])
@pytest.mark.parametrize(("batch", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_a_first_batch_that_is_no_data_is_refused(batch: Any, says: str, stage: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        taken(batch, stage)
    said = str(caught.value)
    assert "label" in said or f"the first {stage} batch" in said
    assert "\n" not in said


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("stage", ["training", "validation", "test"])
@pytest.mark.parametrize("name", ["floats in [0, 1]", "no labels", "a label out of range", "channels last"])
def test_that_comes_before_any_step(name: str, stage: str, tmp_path: Path) -> None:
    (batch, says), module, good = REFUSED[name], model(), loader((X, Y))
    bad = loader(batch)
    with pytest.raises(ValueError, match=says):
        run(trainer(tmp_path), module, stage, good, bad)
    assert module.global_step == 0


@pytest.mark.tried("One's own data")
def test_a_label_out_of_range_in_a_later_batch_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a label is [34], but the model has 3 classes"):
        trainer(tmp_path).fit(model(), loader((X, Y), (X, Y + 2)))


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("value", [1.0, 0.5, 0.0])
def test_a_batch_without_a_dark_pixel_is_warned_of_and_trained(value: float, tmp_path: Path) -> None:
    """White paper is white in [0, 1] and in [-1, 1]."""
    module = model()
    with pytest.warns(UserWarning, match="they have no dark pixel"):
        trainer(tmp_path).fit(module, loader((torch.full_like(X, value), Y)))
    assert module.global_step == 1


@pytest.mark.tried("One's own data")
def test_a_model_in_float64_keeps_float64_images(tmp_path: Path) -> None:
    spy, x = Spy(), X.double() / 3
    trainer(tmp_path, spy, precision="64-true").fit(model(), loader((x, Y)))
    assert spy.train[0]["losses"].dtype == torch.float64


@pytest.mark.tried("One's own data")
def test_a_condition_that_is_no_tensor_reaches_the_users_conditioner(tmp_path: Path) -> None:
    class Texts(Conditioner):
        def forward(self, y: Any) -> Tensor:
            return torch.tensor([[float(len(text))] * 4 for text in y]) if isinstance(y, list) else torch.zeros(1, 4)

        def default(self, number: Tensor) -> Tensor:
            return torch.zeros_like(number)

    module = Diffusion(Net(), Linear(50), SHAPE, conditioner=Texts())
    trainer(tmp_path).fit(module, loader((X, ["word"] * 8)))
    assert module.global_step == 1


def run(one: Trainer, module: Diffusion, stage: str, good: DataLoader, bad: DataLoader) -> None:
    """A `fit` with the bad loader as one of its two, or an evaluation of it."""
    if stage in ("training", "validation"):
        one.fit(module, *((bad, good) if stage == "training" else (good, bad)))
    else:
        getattr(one, stage)(module, bad, verbose=False)


# A loader that gives nothing


class Nothing(Dataset):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, i: int) -> Any:
        raise IndexError


def short() -> DataLoader:
    return DataLoader(list(zip(X, Y, strict=True)), batch_size=9, drop_last=True)  # type: ignore[arg-type]


EMPTY = {
    "an empty set": lambda: DataLoader(Nothing()),
    "a set smaller than one batch": short,
    "a stream of nothing": loader,
}


@pytest.mark.tried("One's own data")
@pytest.mark.filterwarnings("ignore:Total length of")
@pytest.mark.parametrize("stage", ["training", "validation", "validate", "test"])
@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY.keys())
@pytest.mark.parametrize("sanity", [0, 2], ids=["without a sanity check", "with a sanity check"])
def test_a_loader_without_batches_is_an_error(
    make: Callable[[], DataLoader], stage: str, sanity: int, tmp_path: Path
) -> None:
    module, good, one = model(), loader((X, Y)), trainer(tmp_path, num_sanity_val_steps=sanity)
    says = f"the {'validation' if stage == 'validate' else stage} loader gives no batch"
    with pytest.raises(ValueError, match=says):
        run(one, module, stage, good, make())
    known = not (stage == "validation" and make is loader and sanity == 0)  # a stream is known by reading it
    assert module.global_step == 0 or not known


# The numbers of the samples, on which their times and noise depend


def images(n: int, batch_size: int) -> DataLoader:
    return DataLoader([(X[i % 8], Y[i % 8]) for i in range(n)], batch_size=batch_size)  # type: ignore[arg-type]


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("n", [6, 9, 12, 13], ids=lambda n: f"{n} images in batches of 4")
def test_the_images_of_a_step_have_each_its_own_number(n: int, accumulate: int, tmp_path: Path) -> None:
    """Whatever an epoch ends with: a smaller batch, or a step of fewer batches."""
    spy = Spy()
    trainer(tmp_path, spy, accumulate_grad_batches=accumulate, max_epochs=2).fit(model(), images(n, 4))
    steps: list[list[int]] = [[]]
    for outputs in spy.train:
        steps[-1] += outputs["sample"].tolist()
        if int(outputs["step"]) == len(steps):
            steps.append([])
    whole = 4 * accumulate
    rest = [n % whole] if n % whole else []
    assert [len(step) for step in steps] == [*([whole] * (n // whole) + rest) * 2, 0]
    for step in steps:
        assert step == list(range(len(step)))


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("sizes", [(4, 6, 3), (1, 5), (6, 1, 6, 1)], ids=str)
def test_batches_of_several_sizes_share_no_number(sizes: tuple[int, ...], tmp_path: Path) -> None:
    spy = Spy()
    one = trainer(tmp_path, spy, accumulate_grad_batches=len(sizes))
    one.fit(model(), loader(*((X[:n], Y[:n]) for n in sizes)))
    assert torch.cat([outputs["sample"] for outputs in spy.train]).tolist() == list(range(sum(sizes)))


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_that_share_a_users_loader_number_the_places_of_its_order(world: int, accumulate: int) -> None:
    """Torch's DistributedSampler deals images out one by one: what one device numbers i, several do too."""
    n, batch_size = 25, 4
    for stage, split in (("training", accumulate), ("validation", 10**6)):
        of: dict[int, int] = {}
        for rank in range(world):
            sampler: Any = DistributedSampler(list(range(n)), world, rank, shuffle=False)  # type: ignore[arg-type]
            given: Any = DataLoader(torch.arange(n), batch_size=batch_size, sampler=sampler)  # type: ignore[arg-type]
            one = SimpleNamespace(world_size=world, train_dataloader=given, val_dataloaders=given)
            module, feed = SimpleNamespace(trainer=one, global_rank=rank, device=torch.device("cpu")), Feed()
            for k, batch in enumerate(given):
                found = feed.numbers(module, stage, k % split, len(batch))
                first = (k - k % split) * batch_size * world
                for number, index in zip(found.tolist(), batch.tolist(), strict=True):
                    assert first + number not in of
                    of[first + number] = index
        assert all(index == number % n for number, index in of.items())
        assert sorted(of) == list(range(-(-n // world) * world))


@pytest.mark.tried("One's own data")
def test_the_images_of_a_validation_have_each_its_own_number_in_every_round(tmp_path: Path) -> None:
    spy = Spy()
    trainer(tmp_path, spy, max_epochs=2, num_sanity_val_steps=0).fit(model(), images(8, 4), images(10, 4))
    rounds = torch.cat([outputs["sample"] for outputs in spy.val]).view(2, 10)
    assert rounds.tolist() == [list(range(10))] * 2
    t = torch.cat([outputs["t"] for outputs in spy.val]).view(2, 10)
    assert torch.equal(t[0], t[1])


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize(
    ("n", "accumulate"),
    [(6, 1), (12, 2), (13, 2), (14, 3), (6, 2)],
    ids=["6 images, a batch a step", "12, two", "13, two", "14, three", "6, two"],
)
def test_stratified_times_stay_in_their_part_where_an_epoch_ends_early(n: int, accumulate: int, tmp_path: Path) -> None:
    """Of the last step: image i of m has its time in part i of m, as in every other step."""
    spy = Spy()
    trainer(tmp_path, spy, accumulate_grad_batches=accumulate).fit(model(timesteps=Stratified()), images(n, 4))
    m = n % (4 * accumulate) or 4 * accumulate
    batches = spy.train[-math.ceil(m / 4) :]
    assert torch.cat([outputs["sample"] for outputs in batches]).tolist() == list(range(m))
    for outputs in batches:
        # Before the step's last batch comes, it is taken to be full.
        parts = m if outputs is batches[-1] else math.ceil(m / 4) * 4
        t, i = outputs["t"] - 1, outputs["sample"]
        assert (50 * i // parts <= t).all()
        assert (t * parts < 50 * (i + 1)).all()


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("n", [12, 14, 16])
def test_loss_aware_times_learn_of_every_image_once(n: int, accumulate: int, tmp_path: Path) -> None:
    module = model(timesteps=LossAware(history=4))
    trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=2).fit(module, images(n, 4))
    assert int(module.timesteps.seen.sum()) == 2 * n  # type: ignore[operator]


# Sets of images by `Images`


class Own(Images):
    shape = SHAPE

    def __init__(self, images: Tensor, y: Tensor, levels: int = 256, **kwargs: Any) -> None:
        super().__init__(batch_size=4, **kwargs)
        self.given, self.levels = (images, y), levels

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return self.given


BYTES = ((X + 1) * 127.5).byte()


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize(
    ("given", "levels", "says"),
    [
        ((X, Y), 256, "are float32 of shape .* but `read` gives bytes"),
        ((BYTES.long(), Y), 256, "are int64 of shape .* but `read` gives bytes"),
        ((BYTES[:, 0], Y), 256, r"of shape \[8, 4, 3\], but `read` gives bytes"),
        ((BYTES, Y), 17, "go up to 255, but their levels are 0 … 16"),
        ((BYTES[:0], Y[:0]), 256, "are none"),
        ((BYTES, Y[:7]), 256, r"labels of Own are int64 of shape \[7\], but there are 8 images"),
        ((BYTES, Y.float()), 256, "labels of Own are float32"),
        ((BYTES, torch.nn.functional.one_hot(Y)), 256, r"labels of Own are int64 of shape \[8, 3\]"),
    ],
    ids=["floats", "int64", "no channels", "more levels than said", "none", "too few labels", "labels as floats",
         "one-hot labels"],
)  # fmt: skip
def test_what_a_users_set_reads_is_looked_at(given: tuple[Tensor, Tensor], levels: int, says: str) -> None:
    for use in (lambda data: data.setup("fit"), lambda data: data.reference("train")):
        with pytest.raises(ValueError, match=says):
            use(Own(*given, levels=levels))


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("y", [Y[:, None], Y.int(), Y.byte()[:, None]], ids=["of shape (N, 1)", "int32", "bytes"])
def test_labels_of_a_users_set_are_taken_as_whole_numbers(y: Tensor) -> None:
    data = Own(BYTES, y)
    data.setup("fit")
    assert torch.equal(data.splits["train"][1], Y)


# Evaluations on few images


@pytest.mark.tried("Several processes")
def test_every_device_has_images_in_an_evaluation_and_each_image_is_seen_once() -> None:
    for world in range(1, 10):
        for n in range(world, 40):
            for batch_size in (1, 3, 8):
                size = even(n, batch_size, world)
                assert 1 <= size <= batch_size
                ranks = [[int(i) for _, part in Order(n, size, rank, world) for i in part] for rank in range(world)]
                assert min(map(len, ranks)) >= 1, (n, world, batch_size)
                assert sorted(i for part in ranks for i in part) == list(range(n))


@pytest.mark.tried("Several processes")
@pytest.mark.parametrize(("stage", "split"), [("fit", "val"), ("validate", "val"), ("test", "test")])
def test_fewer_images_than_devices_are_refused_before_training(stage: str, split: str) -> None:
    data = Own(BYTES[:3], Y[:3])
    one: Any = SimpleNamespace(world_size=4, accumulate_grad_batches=1, limit_val_batches=1.0, limit_test_batches=1.0)
    data.trainer = one
    with pytest.raises(ValueError, match=f"the {split} set has 3 images, but 4 devices share it"):
        data.setup(stage)
    setattr(one, f"limit_{split}_batches", 0)  # then nobody waits
    if stage != "fit":
        data.setup(stage)


# Labels that nobody reads


def labelled(folder: Path, kind: str) -> Images:
    if kind == "Arrays":
        np.savez(
            folder / "set.npz", images=np.arange(40 * 12, dtype=np.uint8).reshape(40, 2, 2, 3), y=np.arange(40) % 3
        )
        return Arrays(folder / "set.npz", labels="y", batch_size=4)
    for name in ("cats", "dogs"):
        (folder / "set" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (2, 2), (40 * i, 0, 0)).save(folder / "set" / name / f"{i}.png")
    return ImageFolder(folder / "set", classes=True, held_out=2, batch_size=4)


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize("kind", ["ImageFolder", "Arrays"])
@pytest.mark.parametrize("conditional", [False, True], ids=["without a conditioner", "with a conditioner"])
def test_labels_that_were_asked_for_and_go_unused_are_warned_of(
    kind: str, conditional: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION_LIGHTNING_CACHE", str(tmp_path / "cache"))
    conditioner = ClassLabels(3, 3) if conditional else None
    module = Diffusion(Net(3), Linear(50), (3, 2, 2), conditioner=conditioner)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, labelled(tmp_path, kind))
    assert any("labels go unused" in str(warning.message) for warning in said) is not conditional


# Through the command


class Mine(LightningDataModule):
    """Digits as most loaders give pictures: floats in [0, 1]."""

    def train_dataloader(self) -> DataLoader:
        return loader((torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)))


@pytest.mark.tried("One's own data")
def test_the_command_says_what_is_wrong_with_a_users_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.logger", "false", *BARE, "--trainer.limit_val_batches", "0"]
    config = small_config(tmp_path, **{"data": {"class_path": "tests.data.test_own_data.Mine"}})
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), *words])
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert "error: the images of the first training batch are float32 from 0" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.tried("One's own data")
@pytest.mark.parametrize(
    "samples",
    [
        [{"image": Image.new("L", (4, 4)), "label": 3}] * 2,
        [{"image": torch.zeros(1, size, size), "label": 3} for size in (8, 9)],
    ],
    ids=["pictures that are no tensors", "images of two sizes"],
)
@pytest.mark.parametrize("workers", [0, 1], ids=["in the main process", "in a worker"])
def test_images_that_make_no_batch_get_a_sentence(samples: list[Any], workers: int) -> None:
    given: Any = DataLoader(samples, batch_size=2, num_workers=workers)  # type: ignore[arg-type]
    with pytest.raises((TypeError, RuntimeError)) as caught:
        next(iter(given))
    said = _explained(caught.value)
    assert said is not None
    assert said.startswith("a loader cannot put its images together in a batch (")
    assert "\n" not in said
