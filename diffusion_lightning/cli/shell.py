"""What LightningCLI keeps to itself and `fit` needs all the same, by public names and each with its reason.

Beside `distributed.internals`, which holds Lightning's other private parts: that file is imported wherever a model is,
and the command line's parser takes a second to import.
"""

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class Shell(LightningCLI):
    """LightningCLI with a public way to a value, a built object, the parser and the run itself."""

    def value(self, key: str) -> Any:
        """What the subcommand's configuration says; it lies one level deeper if there are subcommands."""
        return self._get(self.config, key)

    def built(self, key: str) -> Any:
        """The object that was built of it."""
        return self._get(self.config_init, key)

    @property
    def words(self) -> LightningArgumentParser:
        """The parser of the subcommand."""
        return self._parser(self.subcommand)

    def work(self, subcommand: str) -> None:
        """Runs the subcommand; there is no public hook around all of it."""
        super()._run_subcommand(subcommand)

    def _run_subcommand(self, subcommand: str) -> None:
        self.work(subcommand)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning lays a checkpoint's hyperparameters over the user's own settings."""
