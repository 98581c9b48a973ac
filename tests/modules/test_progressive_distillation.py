"""Progressive distillation: its target on data whose flow is known, its stages, its exactness, its refusals."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffusion_lightning
from diffusion_lightning.checkpoints import read
from diffusion_lightning.cli import main
from diffusion_lightning.conditioning import ClassLabels
from diffusion_lightning.denoising import X0, Epsilon, Prediction
from diffusion_lightning.guidance import ClassifierFree, guided
from diffusion_lightning.modules import ProgressiveDistillation
from diffusion_lightning.modules.progressive_distillation import two_steps
from diffusion_lightning.objectives import TruncatedSNR
from diffusion_lightning.random import Draw
from diffusion_lightning.samplers import DDIM
from diffusion_lightning.schedules import Cosine, Linear, RectifiedFlow, Schedule, ZeroTerminalSNR

from ..conftest import gaussian, tiny_unet
from ..support.commands import fails
from ..support.exactness import same
from ..support.generatives import config, words

MEAN, STD = 0.3, 0.7


def where_ddim_goes(schedule: Schedule, x: Tensor, times: list[int]) -> Tensor:
    """By the exact denoiser of N(MEAN, STD²), one step after the other."""
    denoise = gaussian(schedule, STD, MEAN)
    for t, s in pairwise(times):
        made = denoise(x, t)
        signal, noise = schedule.alpha_sigma(s)
        x = signal * made.x_0 + noise * made.eps
    return x


def student(schedule: Schedule, length: int) -> Any:
    """A denoiser whose one DDIM step of a length goes where the exact denoiser's steps of one time each go.

    x_0 = (x_s - (σ_s/σ_t)·x_t)/(α_s - (σ_s/σ_t)·α_t), the paper's own form of the target.
    """

    def denoise(x_t: Tensor, t: Tensor, c: Any = None) -> Prediction:
        found = []
        for x, time in zip(x_t.split(1), t.tolist(), strict=True):
            end = time - length
            landed = where_ddim_goes(schedule, x, list(range(time, end - 1, -1)))
            (at, of_t), (to, of_s) = schedule.alpha_sigma(time), schedule.alpha_sigma(end)
            found.append((landed - of_s / of_t * x) / (to - of_s / of_t * at))
        x_0 = torch.cat(found)
        signal, noise = schedule.scales(t, x_t)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    return denoise


@pytest.mark.parametrize("schedule", [Linear(64), Cosine(64), RectifiedFlow(64), ZeroTerminalSNR(Cosine(64))])
@pytest.mark.parametrize("stage", range(6))
def test_the_target_is_the_closed_form_at_every_stage(schedule: Schedule, stage: int) -> None:
    """From the teacher of single steps to that of 32, whose students take all 64 in one."""
    half = 2**stage
    t = torch.arange(2 * half, 65, 2 * half)
    x_t = torch.randn(len(t), 1, 2, 2, dtype=torch.float64)
    found = two_steps(student(schedule, half), schedule, x_t, t, half)
    expected = student(schedule, 2 * half)(x_t, t).x_0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


class Gains(nn.Module):
    """x_0 = a_t·x_t + b_t: of Gaussian data, whatever is exact is of this form."""

    def __init__(self, T: int) -> None:
        super().__init__()
        self.in_channels, self.size = 1, 2
        self.a, self.b = nn.Parameter(torch.zeros(T)), nn.Parameter(torch.zeros(T))

    def forward(self, x_t: Tensor, index: Tensor, c: Any = None) -> Tensor:
        a, b = (gain[index.long()].view(-1, 1, 1, 1) for gain in (self.a, self.b))
        return a * x_t + b


def exact(T: int) -> tuple[Gains, Schedule]:
    schedule, network = Cosine(T), Gains(T)
    denoise, t = gaussian(schedule, STD, MEAN), torch.arange(1, T + 1)
    at = [denoise(torch.full((T, 1, 1, 1), x, dtype=torch.float64), t).x_0.flatten() for x in (0.0, 1.0)]
    network = network.double()
    network.a.data, network.b.data = at[1] - at[0], at[0]
    return network, schedule


def test_a_linear_student_that_has_converged_does_the_teachers_two_steps() -> None:
    network, schedule = exact(16)
    module = ProgressiveDistillation(network, schedule, first=4, last=4, stage_steps=1, parameterization=X0()).double()
    module.teach()
    t = torch.arange(4, 17, 4)
    teacher: Any = module.teacher
    x_T = torch.randn(32, 1, 2, 2, dtype=torch.float64)
    wanted = DDIM(8, clip=None)(teacher, schedule, x_T)
    assert (DDIM(4, clip=None)(module.denoiser, schedule, x_T) - wanted).abs().max() > 1e-3

    x_t = torch.randn(64, 1, 2, 2, dtype=torch.float64)
    times = t.repeat(16)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=300, tolerance_grad=1e-14, tolerance_change=0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.no_grad():
            target = two_steps(teacher, schedule, x_t, times, 2)
        value = (module.denoiser(x_t, times).x_0 - target).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(DDIM(4, clip=None)(module.denoiser, schedule, x_T), wanted, rtol=0, atol=1e-5)


# Stages


def small(**changes: Any) -> ProgressiveDistillation:
    torch.manual_seed(0)
    return ProgressiveDistillation(**{"network": tiny_unet(), "schedule": Cosine(32), "first": 8, **changes})


def test_a_stage_is_one_of_the_optimizer_step() -> None:
    """Of the step that is being trained, or of the last one that the weights have seen."""
    module = small(stage_steps=5)
    found = []
    for done in (0, 1, 5, 6, 10, 11, 15, 20, 99):
        module._steps = done
        found.append((module.stages, module.stage, module.steps, module.own_sampler().steps))
    assert found == [(4, k, 8 >> k, 8 >> k) for k in (0, 0, 0, 1, 1, 2, 2, 3, 3)]


@pytest.mark.slow
def test_each_stages_teacher_is_the_student_before_and_the_optimizer_starts_anew(tmp_path: Path) -> None:
    """Seen in the checkpoints of the stages' ends: bitwise, and the count of the optimizer's steps is the stage's."""
    kind = "ProgressiveDistillation"
    main([*words(kind, tmp_path), "--checkpoint.keep", "null", "--checkpoint.every_n_train_steps", "1"])

    def of(step: int, part: str) -> dict[str, Tensor]:
        state = read(tmp_path / kind / f"checkpoints/step={step}.ckpt")["state_dict"]
        return {name.removeprefix(part): x for name, x in state.items() if name.startswith(part)}

    start = diffusion_lightning.load(tmp_path / "Diffusion").state_dict()
    teacher = of(1, "teacher.network.")
    assert all(torch.equal(start[f"denoiser.network.{name}"], x) for name, x in teacher.items())
    for step in (4, 8, 12):
        before, after = of(step, "denoiser.network."), of(step + 1, "teacher.network.")
        same(before, after)
        same(of(step + 1, "teacher.network."), of(step + 3, "teacher.network."))
    steps = []
    for step in range(1, 9):
        checkpoint = read(tmp_path / kind / f"checkpoints/step={step}.ckpt")
        steps.append(int(next(iter(checkpoint["optimizer_states"][0]["state"].values()))["step"]))
        rate = checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
        assert rate == pytest.approx(1e-3 * (1 - step % 4 / 4))
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4]
    frozen = {name for name, x in of(16, "conditioner.").items() if not torch.equal(x, start[f"conditioner.{name}"])}
    assert not frozen


def test_a_student_of_a_guided_teacher_needs_no_guidance() -> None:
    """Its first target is of the guided teacher's two steps; those of later stages, whose teachers know it, are not."""
    conditioner = ClassLabels(10, 32, dropout=0.1)
    module = small(guidance=3.0, conditioner=conditioner, weighting=TruncatedSNR(), stage_steps=2).eval()
    draw, y = Draw(0, "training", 0, torch.arange(6)), torch.arange(6)
    assert torch.equal(module._conditions(y, draw), y)
    x_0 = torch.rand(6, 1, 8, 8) * 2 - 1
    t = module._evaluation_times(draw)
    x_t = module.schedule.q_sample(x_0, t, draw.normal("eps", x_0))
    own: Any = module.teacher
    for done, teacher in ((1, guided(own, conditioner, y, 3.0)), (3, own)):
        module._steps = done
        t = module._evaluation_times(draw)
        x_t = module.schedule.q_sample(x_0, t, draw.normal("eps", x_0))
        half = 32 // (2 * module.steps)
        with torch.no_grad():
            target = two_steps(teacher, module.schedule, x_t, t, half, conditioner(y))
            made = module.denoiser(x_t, t, conditioner(y))
        weight = module.schedule.snr(t).clamp(min=1)
        wanted = weight * (made.x_0 - target).square().flatten(1).mean(1)
        torch.testing.assert_close(module._losses(x_0, t, draw, y), wanted.float(), rtol=1e-3, atol=1e-6)


def test_a_students_scale_of_guidance_is_a_condition() -> None:
    """Of the same weights as its teacher it starts where no scale matters, and learns each example's own."""
    conditioner = ClassLabels(10, 32, dropout=0.1)
    module = small(guidance=(1.0, 5.0), conditioner=conditioner, weighting=TruncatedSNR(), stage_steps=2).eval()
    assert module.scale is not None
    draw, y = Draw(0, "training", 0, torch.arange(6)), torch.arange(6)
    scales = module.scale.drawn(draw)
    assert float(scales.min()) >= 1
    assert float(scales.max()) <= 5
    assert len(set(scales.tolist())) == 6
    x_0, own = torch.rand(6, 1, 8, 8) * 2 - 1, module.denoiser
    assert torch.equal(module.generate(3, guidance=1.0), module.generate(3, guidance=4.0))
    nn.init.normal_(module.scale.leave.weight, std=0.3)
    assert not torch.equal(module.generate(3, guidance=1.0), module.generate(3, guidance=4.0))
    assert torch.equal(module.generate(3), module.generate(3, guidance=1.0))
    for done in (1, 3):
        module._steps = done
        if done == 3:
            module.teach()
        t = module._evaluation_times(draw)
        x_t = module.schedule.q_sample(x_0, t, draw.normal("eps", x_0))
        c, half = module.scale(conditioner(y), scales), 32 // (2 * module.steps)
        wanted = []
        with torch.no_grad():
            for k in range(6):
                one = slice(k, k + 1)
                teacher: Any = (
                    guided(module.teacher, conditioner, y[one], float(scales[k])) if done == 1 else own  # type: ignore[arg-type]
                )
                of_teacher = conditioner(y[one]) if done == 1 else c[one]
                target = two_steps(teacher, module.schedule, x_t[one], t[one], half, of_teacher)
                made = own(x_t[one], t[one], c[one])
                weight = module.schedule.snr(t[one]).clamp(min=1)
                wanted.append(weight * (made.x_0 - target).square().flatten(1).mean(1))
        torch.testing.assert_close(module._losses(x_0, t, draw, y), torch.cat(wanted).float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance": (3.0, 1.0)}, "guidance is [3.0, 1.0], but a range of scales rises"),
        ({"guidance": (-1.0, 1.0)}, "guidance is [-1.0, 1.0], but a range of scales rises"),
        ({"guidance": (1.0, 3.0), "conditioner": None}, "needs the null condition, but Unconditional has none"),
        ({"guidance": (1.0, 3.0), "conditioner": ClassLabels(10, 32, dropout=0.0)}, "training never"),
    ],
)
def test_scales_that_cannot_be_conditions_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        small(**{"conditioner": ClassLabels(10, 32, dropout=0.1), **changes})


@pytest.mark.parametrize("asked", [0.5, 6.0, ClassifierFree(3.0)])
def test_a_student_is_asked_for_scales_that_it_knows(asked: Any) -> None:
    module = small(guidance=(1.0, 5.0), conditioner=ClassLabels(10, 32, dropout=0.1))
    with pytest.raises(ValueError, match=r"the student knows the scales in \[1, 5\]: give one of them"):
        module.generate(1, guidance=asked)
    with pytest.raises(ValueError, match=r"the student knows the scales in"):
        module.check(None, asked)


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first": 6}, "first is 6 and last is 1, but each student takes half the steps"),
        ({"first": 8, "last": 3}, "first is 8 and last is 3"),
        ({"first": 2, "last": 4}, "first is 2 and last is 4"),
        ({"first": 0, "last": 0}, "first is 0 and last is 0"),
        ({"first": 32}, "the schedule has T = 32, but the teacher of a student of 32 steps takes 64"),
        ({"schedule": Cosine(1000), "first": 64}, "such as 1024, or another first"),
        ({"stage_steps": 0}, "stage_steps is 0, but a stage has at least one"),
        ({"parameterization": Epsilon()}, "the student predicts Epsilon"),
    ],
)
def test_steps_that_do_not_halve_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**changes)


def test_a_run_without_a_teacher_is_refused(tmp_path: Path, capsys: Any) -> None:
    file = str(config("ProgressiveDistillation", tmp_path))
    assert "starts from its teacher, but this run starts from random weights" in fails(capsys, "fit", "--config", file)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.init_args.schedule.init_args.T", "32"], "was trained on Cosine with T = 16, but the student's"),
        (["--model.init_args.parameterization", "X0"], "predicts Velocity, but the student X0"),
        (["--model.init_args.network.init_args.channels", "16"], "does not take images of shape"),
        (["--trainer.max_steps", "17"], "trainer.max_steps is 17, but 4 stages of 4 steps are 16"),
    ],
)
def test_a_teacher_that_is_none_of_this_student_is_refused(
    tmp_path_factory: pytest.TempPathFactory, capsys: Any, options: list[str], said: str
) -> None:
    given = words("ProgressiveDistillation", shared(tmp_path_factory))
    assert re.search(said, fails(capsys, *given, *options))


def test_a_teacher_with_a_prediction_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student's configuration names its class, so that the teacher's may."""
    (tmp_path / "my_prediction.py").write_text(
        "from diffusion_lightning.denoising import Velocity\n\n\nclass Mine(Velocity):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ["--model.init_args.parameterization", "my_prediction.Mine"]
    main([*words("Diffusion", tmp_path), *own])
    line = words("ProgressiveDistillation", tmp_path)
    main([*line, *own])
    assert (tmp_path / "ProgressiveDistillation/checkpoints/last.ckpt").exists()


_SHARED: list[Path] = []


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher, one for all."""
    if not _SHARED:
        _SHARED.append(factory.mktemp("teacher"))
    return _SHARED[0]
