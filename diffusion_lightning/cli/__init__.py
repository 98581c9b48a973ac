"""The command `diffusion-lightning`: a subcommand a file, and what they share."""

from .entry import main as main
