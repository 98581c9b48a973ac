"""A classifier of noisy images: its loss written out, its draws, what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from diffusion_lightning.data import Digits
from diffusion_lightning.modules import NoisyClassifier
from diffusion_lightning.networks import HalfUNet
from diffusion_lightning.random import Draw
from diffusion_lightning.schedules import Cosine


def small(**changes: Any) -> NoisyClassifier:
    network = HalfUNet(10, 1, 8, 8, (1, 2), 1, (4,), groups=4, heads=2)
    return NoisyClassifier(**{"network": network, "schedule": Cosine(50), **changes})


def fitted(folder: Path, model: NoisyClassifier, steps: int, **options: Any) -> NoisyClassifier:
    trainer = Trainer(default_root_dir=folder, logger=False, accelerator="cpu", max_steps=steps, limit_val_batches=0,
                      enable_progress_bar=False, enable_checkpointing=False, **options)  # fmt: skip
    trainer.fit(model, datamodule=Digits())
    return model


def test_its_loss_is_the_cross_entropy_at_x_t() -> None:
    model, y, t = small().eval(), torch.tensor([3, 9]), torch.tensor([1, 40])
    draw, x_0 = Draw(0, "training", 7, torch.arange(2)), torch.rand(2, 1, 8, 8) * 2 - 1
    losses, right = model._classified(x_0, y, t, draw)
    x_t = model.schedule.q_sample(x_0, t, draw.normal("eps", x_0))
    log_probs = model.log_probs(x_t, t)
    torch.testing.assert_close(losses, -log_probs.gather(1, y[:, None])[:, 0])
    assert right.tolist() == [float(log_probs[k].argmax() == y[k]) for k in range(2)]


def test_the_network_is_fed_times_up_to_a_thousand_whatever_t() -> None:
    seen: list[Tensor] = []

    class Recorder(HalfUNet):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            seen.append(t)
            return super().forward(x_t, t, c)

    model = small(network=Recorder(10, 1, 8, 8, (1,), 1, (), groups=4))
    seen.clear()
    model(torch.zeros(3, 1, 8, 8), torch.tensor([1, 26, 50]))
    assert seen[0].tolist() == [0.0, 500.0, 980.0]


def test_a_training_is_a_function_of_its_seed(tmp_path: Path) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(0)
        network: Any = fitted(tmp_path, small(seed=seed), 3).network
        return network.pool.out.weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """From ln 10 nats on, at times that leave something to see."""
    torch.manual_seed(0)
    model = fitted(tmp_path, small(optimizer=lambda p: torch.optim.Adam(p, 3e-3)), 150).eval()
    data = Digits()
    data.setup("validate")
    x_0, y = data.reference("val")[:], data.splits["val"][1]
    draw = Draw(1, "held out", 0, torch.arange(len(y)))
    with torch.no_grad():
        losses, right = model._classified(x_0, y, torch.full_like(y, 5), draw)
    assert float(losses.mean()) < math.log(10) / 2
    assert float(right.mean()) > 0.7


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a network that states no classes":
        ({"network": nn.Linear(8, 10), "shape": (1, 8, 8)}, "the classifier has no classes"),
    "other numbers of classes": ({"classes": 7}, r"into \[10\], but there are 7 classes"),
    "images that the network does not take": ({"shape": (3, 8, 8)}, "does not take images of shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str) -> None:
    changes, says = WRONG[case]
    with pytest.raises(ValueError, match=says):
        small(**changes)


def test_a_strategy_that_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shards the parameters, but a NoisyClassifier is trained whole"):
        fitted(tmp_path, small(), 1, strategy=ModelParallelStrategy())
