"""The average in closed form, its swap, and what a checkpoint holds of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from diffusion_lightning.callbacks import EMA
from diffusion_lightning.callbacks import ema as averages
from diffusion_lightning.data import Digits
from diffusion_lightning.modules import Diffusion
from diffusion_lightning.schedules import Cosine

from ..conftest import tiny_unet
from ..support.rows import rows


class One(LightningModule):
    """One parameter, set by hand."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([value]))
        self.register_buffer("constant", torch.arange(8))


def test_the_initial_weights_count_decay_to_the_k() -> None:
    module, ema = One(1.0), EMA(decay=0.9)
    ema._prepare(module)
    module.w.data.zero_()
    for _ in range(20):
        ema.update(module)
    assert ema.average["w"].item() == pytest.approx(0.9**20, rel=1e-5)


def test_the_average_in_closed_form() -> None:
    module, ema = One(5.0), EMA(decay=0.8)
    ema._prepare(module)
    values = [1.0, -2.0, 4.0, 0.5]
    for value in values:
        module.w.data.fill_(value)
        ema.update(module)
    expected = 0.8**4 * 5 + sum(0.2 * 0.8 ** (3 - i) * v for i, v in enumerate(values))
    assert ema.average["w"].item() == pytest.approx(expected, rel=1e-6)


def test_warmup_forgets_the_start_sooner() -> None:
    module, ema = One(1.0), EMA(decay=0.9999, warmup=True)
    ema._prepare(module)
    module.w.data.zero_()
    expected = 1.0
    for k in range(10):
        ema.update(module)
        expected *= (1 + k) / (10 + k)
    assert ema.average["w"].item() == pytest.approx(expected, rel=1e-5)


def test_only_parameters_are_averaged() -> None:
    module, ema = One(1.0), EMA()
    ema._prepare(module)
    assert set(ema.average) == {"w"}
    half = One(1.0).to(torch.bfloat16)
    ema = EMA()
    ema._prepare(half)
    assert ema.average["w"].dtype == torch.float32


class Drifting(LightningModule):
    """Weights about 1 that rise by 3.5e-4 in all with little jitter, a step's share of which float32 rounds away."""

    STEPS = 1500

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(1 + torch.linspace(0, 0.5, 64))
        self.v = torch.nn.Parameter(torch.ones(3))
        self._start = {name: p.detach().clone() for name, p in self.named_parameters()}

    def drift(self, step: int) -> None:
        for name, p in self.named_parameters():
            jitter = 1e-6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            p.data = self._start[name] + 3.5e-4 * step / self.STEPS + jitter


def averaged(steps: int = Drifting.STEPS, stop: int | None = None, **kwargs: Any) -> tuple[EMA, dict[str, Tensor]]:
    """The EMA of such a run, begun anew from its state at step `stop`, and the same average in float64."""
    module, ema = Drifting(), EMA(**kwargs)
    ema._prepare(module)
    exact = {name: p.detach().double() for name, p in module.named_parameters()}
    for step in range(1, steps + 1):
        module.drift(step)
        decay = ema.update(module)
        exact = {name: decay * exact[name] + (1 - decay) * p.detach().double() for name, p in module.named_parameters()}
        if step == stop:
            state = {key: dict(x) if isinstance(x, dict) else x for key, x in ema.state_dict().items()}
            ema = EMA(**kwargs)
            ema.load_state_dict(state)
            ema._prepare(module)
    return ema, exact


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("warmup", [False, True], ids=["from the first step", "with warm-up"])
def test_an_average_in_float32_follows_a_drift_of_less_than_its_last_place(warmup: bool) -> None:
    """As one in float64 does, to the rounding of the result."""
    ema, exact = averaged(decay=0.9999, warmup=warmup)
    for name, expected in exact.items():
        start = Drifting()._start[name].double()
        assert (expected - start).min() > 1.5e-5  # 100 times the spacing of float32 there, and without compensation 0
        assert (ema.average[name].double() - expected).abs().max() <= 2**-24 * 1.01
        kept = ema.average[name].double() + ema.compensation[name].double()
        assert (kept - expected).abs().max() < 1e-11


@pytest.mark.tried("Numbers, precision and words")
def test_a_compensated_average_goes_on_bit_for_bit_from_its_checkpoint() -> None:
    straight, resumed = averaged(60)[0], averaged(60, stop=23)[0]
    for kept in ("average", "compensation"):
        for name, x in getattr(straight, kept).items():
            assert torch.equal(x, getattr(resumed, kept)[name])
    assert all(x.abs().max() > 0 for x in straight.compensation.values())


@pytest.mark.tried("Numbers, precision and words")
def test_a_checkpoint_from_before_compensation_goes_on_with_none() -> None:
    module, ema = Drifting(), EMA()
    ema.load_state_dict({"updates": 3, "average": {name: p.detach() + 1 for name, p in module.named_parameters()}})
    ema._prepare(module)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in ema.compensation.values())
    assert torch.equal(ema.average["v"], torch.full((3,), 2.0))
    ema.update(module)


@pytest.mark.tried("Numbers, precision and words")
@pytest.mark.parametrize("at_once", [1, 64, 70, 2**20])
def test_an_average_does_not_depend_on_how_many_weights_are_worked_on_at_a_time(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = averaged(20)[0]
    monkeypatch.setattr(averages, "AT_ONCE", at_once)
    found = averaged(20)[0]
    assert all(torch.equal(x, found.average[name]) for name, x in expected.average.items())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_what_is_no_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        EMA(decay)


class Watch(Callback):
    """Records the weights after every optimizer step, and what evaluation sees."""

    def __init__(self) -> None:
        self.raw: list[Tensor] = []
        self.seen: dict[str, Tensor] = {}
        self._step = 0

    def weight(self, module: LightningModule) -> Tensor:
        return next(module.parameters()).detach().clone()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.raw.append(self.weight(module))

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.seen["epoch start"] = self.weight(module)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.seen["epoch end"] = self.weight(module)


def run(tmp_path: Path, callbacks: list[Callback], **kwargs: Any) -> Diffusion:
    torch.manual_seed(0)
    module = Diffusion(tiny_unet(), Cosine(T=20), (1, 8, 8), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    options: dict[str, Any] = {
        "max_steps": 6, "logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0,
        "enable_checkpointing": False, "enable_model_summary": False, "val_check_interval": 2,
        "check_val_every_n_epoch": None,
    }  # fmt: skip
    Trainer(default_root_dir=tmp_path, accelerator="cpu", callbacks=callbacks, **{**options, **kwargs}).fit(
        module, Digits(batch_size=32)
    )
    return module


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("first", [True, False])
def test_one_update_an_optimizer_step_also_under_accumulation(tmp_path: Path, accumulate: int, first: bool) -> None:
    """And evaluation sees the average, training the raw weights, in whichever order the callbacks stand."""
    ema, watch = EMA(decay=0.7), Watch()
    start = next(tiny_weights())
    module = run(
        tmp_path, [ema, watch] if first else [watch, ema], accumulate_grad_batches=accumulate, val_check_interval=6
    )
    assert len(watch.raw) == 6
    expected = start
    for raw in watch.raw:
        expected = 0.7 * expected + 0.3 * raw
    name = next(name for name, _ in module.named_parameters())
    torch.testing.assert_close(ema.average[name], expected)
    assert torch.equal(watch.weight(module), watch.raw[-1])
    if accumulate == 1:
        for seen in watch.seen.values():
            torch.testing.assert_close(seen, expected)


def tiny_weights():
    torch.manual_seed(0)
    yield from (p.detach().clone() for p in tiny_unet().parameters())


class Bomb(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "inside.ckpt", weights_only=False)
        raise RuntimeError("in the middle of validation")


def test_an_end_in_the_middle_of_validation_exchanges_nothing(tmp_path: Path) -> None:
    ema, watch = EMA(decay=0.7), Watch()
    with pytest.raises(RuntimeError, match="in the middle"):
        run(tmp_path, [ema, watch, Bomb()])
    assert not ema.swapped
    checkpoint = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    name = next(iter(ema.average))
    assert torch.equal(checkpoint["state_dict"][name], watch.raw[-1])
    assert torch.equal(checkpoint["callbacks"]["EMA"]["average"][name], ema.average[name])
    assert torch.equal(checkpoint["callbacks"]["EMA"]["compensation"][name], ema.compensation[name])
    assert checkpoint["callbacks"]["EMA"]["updates"] == 2


def test_the_decay_of_an_update_is_logged(tmp_path: Path) -> None:
    """With the warm-up: (1 + k)/(10 + k) at the k-th update, counted from 0."""
    run(tmp_path, [EMA(decay=0.3, warmup=True)], logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=1)
    logged = {row["step"]: float(row["ema/decay"]) for row in rows(tmp_path / "metrics.csv") if row["ema/decay"]}
    assert logged == {str(k): pytest.approx(min(0.3, (1 + k) / (10 + k))) for k in range(6)}
