"""A metric for configs, a logger that keeps what it is given, and a run with some callbacks alone."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger
from PIL import Image

from ..conftest import UNWATCHED, small_config


def metric(name: str, **arguments: Any) -> dict[str, Any]:
    extractor = {"class_path": "DigitsNet"}
    return {"class_path": f"diffusion_lightning.metrics.{name}", "init_args": {"extractor": extractor, **arguments}}


class Album(Logger):
    """Keeps the pictures and tables it is given."""

    name = "album"
    version = 0
    pictures: list[tuple[str, int, Image.Image]]
    tables: list[tuple[str, int, list[str], list[list[Any]]]]

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        Album.pictures, Album.tables = [], []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_image(self, key: str, images: list[Image.Image], step: int, caption: list[str] | None = None) -> None:
        self.pictures.append((key, step, images[0]))

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.tables.append((key, step, columns, data))


def with_callbacks(folder: Path, *callbacks: tuple[str, dict[str, Any]], **changes: Any) -> Path:
    """The small config with an album, and with these callbacks alone."""
    path = small_config(folder, **{"trainer.logger": {"class_path": "tests.support.callbacks.Album"}, **changes})
    config = yaml.safe_load(path.read_text())
    config.update(UNWATCHED)
    config["trainer"]["callbacks"] = [
        {"class_path": f"diffusion_lightning.callbacks.{name}", "init_args": given} for name, given in callbacks
    ]
    path.write_text(yaml.safe_dump(config))
    return path
