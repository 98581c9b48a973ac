"""Where Lightning's training loop stands."""

from lightning.pytorch import Trainer


def validation_follows(trainer: Trainer) -> bool:
    """Whether the batch that ends now is one after which Lightning validates."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
