"""How a sheet of samples gets into the run's folder and to the loggers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from diffusion_lightning.callbacks.base.folder import save_picture


class Recorder:
    """A logger that takes pictures, and keeps them."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def log_image(self, key: str, images: list[Any], **more: Any) -> None:
        self.calls.append({"key": key, "sizes": [image.size for image in images], **more})


def test_loggers_get_images_with_captions_one_by_one_and_others_as_a_sheet(tmp_path: Path) -> None:
    logger = Recorder()
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path), loggers=[logger, object()])
    sheet, images = torch.zeros(40, 20, 1, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    save_picture(trainer, "samples/step=3.png", sheet, "samples", 3, images)
    save_picture(trainer, "samples/step=4.png", sheet, "samples", 4, images, ["a cat", "a dog"])
    assert logger.calls == [
        {"key": "samples", "sizes": [(20, 40)], "step": 3, "caption": ["step 3"]},
        {"key": "samples", "sizes": [(8, 8), (8, 8)], "step": 4, "caption": ["a cat", "a dog"]},
    ]
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == ["step=3.png", "step=4.png"]
