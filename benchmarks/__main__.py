"""`python -m benchmarks train|sample|profile …`: side by side with what a user would take instead."""

import sys
import warnings
from importlib import import_module

NAMES = (
    "train", "sample", "score", "loader", "quality", "gains", "profile", "cost", "start", "shared", "identical",
    "tried", "objectives", "guidance", "scenes", "latent_scenes", "latents", "few_steps", "classes", "pictures",
    "edits", "app",
)  # fmt: skip


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in NAMES:
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        except ValueError as error:  # a sentence, as the command's
            raise SystemExit(f"error: {error}") from None
        return
    raise SystemExit(f"error: there is no benchmark {' '.join(sys.argv[1:2])}: give one of {', '.join(NAMES)}")


if __name__ == "__main__":
    main()
