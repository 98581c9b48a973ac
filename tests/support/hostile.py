"""An object that runs code if it is unpickled."""

from pathlib import Path


class Hostile:
    """Runs code where it is unpickled carelessly."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))
