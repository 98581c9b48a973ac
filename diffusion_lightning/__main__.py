"""`python -m diffusion_lightning` is `diffusion-lightning`: it listens to signals before the long imports begin."""

from .job import Preempted, leave, listening


def main() -> None:
    """The command."""
    try:
        with listening():
            from .cli import main as command

            command()
    except Preempted as stop:
        raise SystemExit(leave(str(stop))) from None


if __name__ == "__main__":
    main()
