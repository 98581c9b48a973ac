"""Who visits the page of `app`, and what each has made: draws in folders of their own, and the chosen samples."""

import contextlib
import secrets
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

VISITORS = 64  # whose pictures are kept
DRAWS = 24  # of one visitor, the last


@dataclass(frozen=True)
class Draw:
    """Pictures that were made, and how.

    Attributes:
        id: a name that nobody guesses.
        folder: where the pictures lie, and an edit's input.
        pictures: their files.
        model: index of the checkpoint.
        words: of the command that makes the same.
        said: what the command would print of them.
    """

    id: str
    folder: Path
    pictures: tuple[Path, ...]
    model: int
    words: tuple[str, ...]
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """A picture of a draw."""

    draw: Draw
    index: int

    @property
    def path(self) -> Path:
        """Its file."""
        return self.draw.pictures[self.index]


@dataclass
class Session:
    """What one visitor has made, in a folder of its own."""

    folder: Path
    draws: OrderedDict[str, Draw] = field(default_factory=OrderedDict)
    chosen: list[Chosen] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    ended: bool = False

    def new_folder(self) -> Path:
        """The folder of a draw to come, whose name is the draw's."""
        path = self.folder / secrets.token_hex(8)
        path.mkdir(parents=True)
        return path

    def keep(self, draw: Draw) -> None:
        """Takes a draw up; the oldest of too many goes, with its pictures."""
        self.draws[draw.id] = draw
        while len(self.draws) > DRAWS:
            _, old = self.draws.popitem(last=False)
            self.chosen = [x for x in self.chosen if x.draw is not old]
            shutil.rmtree(old.folder, ignore_errors=True)

    def find(self, draw: object, index: object) -> Chosen:
        """A picture of a draw by what the page says of it.

        Raises:
            ValueError: if this visitor has no such picture.
        """
        found = self.draws.get(draw) if isinstance(draw, str) else None
        if found is None or not isinstance(index, int) or not 0 <= index < len(found.pictures):
            raise ValueError("this sample is not kept any more: draw anew, and choose one of the new samples")
        return Chosen(found, index)

    def choose(self, draw: object, index: object) -> None:
        """Chooses a picture; of three the first is put back, and one that is chosen already too."""
        found = self.find(draw, index)
        if found in self.chosen:
            self.chosen.remove(found)
        else:
            self.chosen = [*self.chosen[-1:], found]

    def end(self) -> None:
        """Stops what is being drawn and removes the pictures."""
        self.ended = True
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """The sessions of all visitors.

    Args:
        folder: for their pictures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._all: OrderedDict[str, Session] = OrderedDict()

    def of(self, key: str) -> Session:
        """The session of a visitor; the one that was not used for longest ends if there are too many."""
        with self._lock:
            if key not in self._all:
                self._all[key] = Session(self.folder / secrets.token_hex(8))
            self._all.move_to_end(key)
            found = self._all[key]
            gone = [self._all.popitem(last=False)[1] for _ in range(len(self._all) - VISITORS)]
        for session in gone:
            session.end()
        return found

    def leave(self, key: str) -> None:
        """Ends a visitor's session."""
        with self._lock, contextlib.suppress(KeyError):
            self._all.pop(key).end()

    def close(self) -> None:
        """Stops what any visitor has asked for."""
        with self._lock:
            for session in self._all.values():
                session.stop.set()
