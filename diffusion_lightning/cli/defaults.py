"""What a configuration may leave out: its logger, what it is watched by, and numbers that it states elsewhere."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ..callbacks import GenerativeMetrics, LossByTimestep, Reconstructions, ReverseChain, SampleGrid, Throughput
from ..known import parameters
from ..modules import Generative
from . import run_folder
from .errors import NEEDED, null

# What a run is watched by, each a key of the configuration beside `trainer`, so that a list of callbacks of one's own
# loses none of it. The two that cost next to nothing are there unless they are null.
WATCHES = {
    "grid": SampleGrid,
    "loss_by_timestep": LossByTimestep,
    "metrics": GenerativeMetrics,
    "chain": ReverseChain,
    "reconstructions": Reconstructions,
    "throughput": Throughput,
}
UNASKED = ("loss_by_timestep", "throughput")
LOGGER = {"class_path": "diffusion_lightning.loggers.WeightsAndBiases", "init_args": {"offline": True}}

MODEL = "model.init_args"


def has(model: Any, key: str) -> bool:
    """Whether a model has what is watched by a key that nobody asked for."""
    return key not in UNASKED or (isinstance(model, Generative) and (key != "loss_by_timestep" or model.T is not None))


def settle(config: Namespace) -> None:
    """Fills in what a configuration leaves out and states elsewhere, and takes out what it states twice.

    | left out                              | is                                                                  |
    |---------------------------------------|---------------------------------------------------------------------|
    | `total_steps` of a learning rate      | `trainer.max_steps`                                                 |
    | the model's `shape`                   | the data's, if the network does not state `in_channels` and `size`  |
    | a logger's `name`                     | that of the run's folder                                            |
    | the model's `lora`                    | the key `lora` beside `model`                                       |
    """
    for key in NEEDED:
        if config.get(key) is None:
            raise ValueError(null(key))
    if "lora" in config:  # given: null takes out what the configuration that a run saved has in both places
        if "lora" in parameters(run_folder.imported(config.model.class_path)):
            config[f"{MODEL}.lora"] = config.lora
        elif config.lora is not None:
            raise ValueError(
                f"lora adapts a network that is trained already, but {config.model.class_path.rpartition('.')[2]} "
                "takes no adapters: leave lora out, or train a Diffusion"
            )
    if config.get(f"{MODEL}.lr_scheduler.init_args.total_steps", 0) is None and config.trainer.max_steps > 0:
        config[f"{MODEL}.lr_scheduler.init_args.total_steps"] = config.trainer.max_steps
    network = config.get(f"{MODEL}.network.init_args") or Namespace()
    stated = all(network.get(name) is not None for name in ("in_channels", "size"))
    if config.get(f"{MODEL}.shape", 0) is None and not stated:
        config[f"{MODEL}.shape"] = _shape(config.data)
    listed = {x.class_path.rpartition(".")[2] for x in run_folder.described(config.trainer.callbacks)}
    for key in UNASKED:
        if WATCHES[key].__name__ in listed:
            config[key] = None
    for logger in run_folder.described(config.trainer.logger):
        if run_folder.is_wandb(logger.class_path) and logger.get("init_args.name", "") is None:
            logger["init_args.name"] = Path(config.trainer.default_root_dir).name


def _shape(data: Namespace) -> Any:
    """The shape that a data module's class states, or that of the source of its images; None if it is known later."""
    found = getattr(run_folder.imported(data.class_path), "shape", None)
    source = data.get("init_args.source")
    if isinstance(found, tuple | list):
        return found
    return _shape(source) if isinstance(source, Namespace) else None
