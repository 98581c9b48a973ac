"""Small runs of each module that makes images: a diffusion model, students of it, a GAN; as configurations."""

from pathlib import Path
from typing import Any

import yaml

from diffusion_lightning.cli import main

STEPS = 16
UNET = {
    "class_path": "UNet",
    "init_args": {
        "in_channels": 1, "size": 8, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "groups": 4,
        "dropout": 0.1,
    },
}  # fmt: skip
LABELS = {"class_path": "ClassLabels", "init_args": {"classes": 10, "width": 32, "dropout": 0.2}}
FINE = {"class_path": "LogSigma", "init_args": {"T": 20_000, "sigma_min": 0.0005, "sigma_max": 200.0}}
EDM = {"class_path": "EDM", "init_args": {"sigma_data": 0.75}}
SIZES = {"in_channels": 1, "size": 8, "channels": 8, "most": 16, "blocks": 1, "group": 4, "condition_width": 6}
ADAM = {"class_path": "Adam", "init_args": {"lr": 1e-3}}

MODELS: dict[str, dict[str, Any]] = {
    "Diffusion": {
        "schedule": {"class_path": "Cosine", "init_args": {"T": 16}}, "parameterization": {"class_path": "Velocity"},
    },
    "ProgressiveDistillation": {
        "schedule": {"class_path": "Cosine", "init_args": {"T": 16}}, "parameterization": {"class_path": "Velocity"},
        "first": 8, "last": 1, "stage_steps": 4, "guidance": [1.0, 3.0],
        "lr_scheduler": {"class_path": "Sawtooth", "init_args": {"steps": 4}},
    },
    "Consistency": {
        "schedule": FINE, "parameterization": EDM, "curriculum": {"class_path": "ECT", "init_args": {"stage_steps": 2}},
    },
    "Distillation": {
        "schedule": FINE, "parameterization": EDM, "solver": "heun", "huber": None,
        "curriculum": {"class_path": "ICT", "init_args": {"s_0": 4, "s_1": 16, "steps": 16}},
    },
    "GAN": {
        "network": {"class_path": "ResidualGenerator", "init_args": {"latent": 5, **SIZES}},
        "discriminator": {"class_path": "ResidualDiscriminator", "init_args": dict(SIZES)},
        "conditioner": {"class_path": "ClassLabels", "init_args": {"classes": 10, "width": 6, "dropout": 0.0}},
        "gamma": [0.1, 0.01], "gamma_steps": 12,
    },
}  # fmt: skip
TEACHERS = {"ProgressiveDistillation": "Diffusion", "Distillation": "EDM"}


def config(kind: str, folder: Path, **trainer: Any) -> Path:
    """The configuration of a run of one of `MODELS`, or of the EDM that `Distillation` starts from, in a file."""
    own = MODELS.get(kind, {"schedule": {"class_path": "LogSigma", "init_args": {"T": 100}}, "parameterization": EDM})
    arguments = {"network": UNET, "conditioner": LABELS, "optimizer": ADAM, **own}
    name = {"Distillation": "Consistency", "EDM": "Diffusion"}.get(kind, kind)
    whole = {
        "seed_everything": 0,
        "model": {"class_path": name, "init_args": arguments},
        "data": {"class_path": "Digits", "init_args": {"batch_size": 24, "flip": True}},
        "ema": {"decay": 0.5},
        "checkpoint": {"every_n_train_steps": 2},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": STEPS, "val_check_interval": 8, "limit_val_batches": 2,
            "accumulate_grad_batches": 2, "check_val_every_n_epoch": None, "logger": False, "log_every_n_steps": 1,
            "gradient_clip_val": 1.0, "default_root_dir": str(folder / kind), **trainer,
        },
    }  # fmt: skip
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def words(kind: str, folder: Path, **trainer: Any) -> list[str]:
    """The `fit` of one; its teacher is trained first, in the same folder."""
    start: list[str] = []
    if kind in TEACHERS:
        teacher = folder / TEACHERS[kind]
        if not teacher.exists():
            main(words(TEACHERS[kind], folder))
        start = ["--init_from", str(teacher)]
    return ["fit", "--config", str(config(kind, folder, **trainer)), *start]
