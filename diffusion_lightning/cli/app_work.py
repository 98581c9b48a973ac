"""The work behind the page of `app`: models that stay open, each visitor's draws, and one request at a time.

A request is a command's words. They are parsed by that command's own parser and done by its own code, so the command
that the page shows makes the same pictures.
"""

import contextlib
import queue
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files, images
from ..callbacks import SampleWriter
from ..samplers.spacing import nearest
from . import app_words, drawing, predict, run_folder
from .app_words import Facts, Form, Places

FRAMES = 10  # shown of one chain
PREVIEW = 128  # pixels of a frame's longer side at most; the result has all
SESSIONS = 64  # visitors whose pictures are kept
DRAWS = 24  # of one visitor, the last
LEAVING = 20.0  # seconds that a chain has to end its step when the app ends


class Stopped(Exception):  # noqa: N818 a request of the user, and no error
    """The visitor has stopped a request, or has gone."""


@dataclass(frozen=True)
class Draw:
    """Pictures that were made, and how.

    Attributes:
        id: a name that nobody guesses.
        folder: where the pictures lie, and an edit's input.
        pictures: their files.
        model: index of the checkpoint.
        words: of the command that makes the same.
        form: what the controls said, of which an edit takes the sampler and the condition.
    """

    id: str
    folder: Path
    pictures: tuple[Path, ...]
    model: int
    words: tuple[str, ...]
    form: Form


@dataclass(frozen=True)
class Chosen:
    """A picture of a draw."""

    draw: Draw
    index: int

    @property
    def path(self) -> Path:
        """Its file."""
        return self.draw.pictures[self.index]


@dataclass(frozen=True)
class Progress:
    """How far a request is: steps done of all, and a frame's pictures (PNG) or none."""

    done: int
    total: int
    frame: tuple[bytes, ...] = ()


@dataclass
class Session:
    """What one visitor has made, in a folder of its own."""

    folder: Path
    draws: "OrderedDict[str, Draw]" = field(default_factory=OrderedDict)
    chosen: list[Chosen] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def new_folder(self) -> tuple[str, Path]:
        """The name and the folder of a draw to come."""
        name = secrets.token_hex(8)
        path = self.folder / name
        path.mkdir(parents=True)
        return name, path

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
            raise ValueError("this sample is no longer kept: draw anew, and choose one of the new samples")
        return Chosen(found, index)

    def choose(self, draw: object, index: object) -> None:
        """Chooses a picture, the second of two or the first anew; one that is chosen is put back."""
        found = self.find(draw, index)
        if found in self.chosen:
            self.chosen.remove(found)
        else:
            self.chosen = [*self.chosen[-1:], found]


class Studio:
    """Models that stay open, and the visitors' sessions.

    Args:
        paths: of the checkpoints.
        places: the device, and whom to trust.
        folder: for everything that visitors make; it is theirs who made it to remove it.

    Raises:
        ValueError: if a checkpoint cannot be opened, or its model draws no pictures.
    """

    def __init__(self, paths: Sequence[str], places: Places, folder: Path) -> None:
        self.places, self.folder = places, folder
        self._opened: dict[str, tuple[tuple[int, int], drawing.Opened]] = {}
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock, self._of_sessions = threading.Lock(), threading.Lock()
        self._threads = torch.get_num_threads()
        self._over = False
        found = [run_folder.chosen(path) for path in paths]
        self.models = [self._facts(name, path) for name, path in zip(names(found), found, strict=True)]

    def _facts(self, name: str, path: str) -> Facts:
        opened = self.open(path, self.places.trust)
        if opened.model.shape[0] not in (1, 3):
            raise ValueError(
                f"{path} draws {opened.model.shape[0]} channels, but a picture has 1 or 3: use a model of pictures"
            )
        return app_words.facts(name, path, opened, self.places.trust)

    def open(self, path: str, trust: Collection[str] = ()) -> drawing.Opened:
        """An opened checkpoint; one whose file was written anew in the meantime is read anew."""
        state = Path(path).stat() if Path(path).is_file() else None
        now = (0, 0) if state is None else (state.st_mtime_ns, state.st_size)
        kept = self._opened.get(path)
        if kept is None or kept[0] != now:
            self._opened[path] = kept = (now, drawing.opened(path, trust))
        return kept[1]

    # Visitors

    def session(self, key: str) -> Session:
        """The session of a visitor; that of the longest unseen of too many is closed."""
        with self._of_sessions:
            if key not in self._sessions:
                folder = self.folder / secrets.token_hex(8)
                folder.mkdir(parents=True, exist_ok=True)
                self._sessions[key] = Session(folder)
            self._sessions.move_to_end(key)
            gone = [self._sessions.popitem(last=False)[1] for _ in range(len(self._sessions) - SESSIONS)]
        for session in gone:
            _end(session)
        return self._sessions[key]

    def leave(self, key: str) -> None:
        """Ends a visitor's session and removes its pictures."""
        with self._of_sessions:
            session = self._sessions.pop(key, None)
        if session is not None:
            _end(session)

    def close(self) -> None:
        """Stops what is being drawn and waits for it to leave."""
        self._over = True
        with self._of_sessions:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.stop.set()
        if self._lock.acquire(timeout=LEAVING):
            self._lock.release()

    # Requests

    def predict(self, session: Session, model: int, form: Form) -> Iterator[Progress | Draw]:
        """Draws samples as `predict` does; what it gives last is the draw.

        Raises:
            ValueError: if the model cannot draw what is asked for.
            Stopped: if the visitor stops it.
        """
        words = app_words.predicting(form, self.models[model], self.places)

        def work(show: Callable[..., None]) -> Draw:
            parser = predict.make_parser()
            config = parser.parse_args(words[1:])
            texts = predict.given_prompts(config)
            drawn = drawing.read(parser, config, texts, self.open)
            name, folder = session.new_folder()
            try:
                sampler = None if drawn.sampler is None else Watched(drawn.sampler, drawn.model, show)
                writer = SampleWriter(folder, drawn.made, None, drawn.asked.prompt)
                requests = predict.Requests(predict.asked_of(drawn, config, sampler))
                predict.make_trainer(config, [writer]).predict(
                    drawn.model, datamodule=requests, return_predictions=False
                )
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            pictures = tuple(sorted(folder.glob("*.png")))
            return Draw(name, folder, pictures, model, tuple(words), form)

        return self._run(session, work)

    def _run(self, session: Session, work: Callable[[Callable[..., None]], Draw]) -> Iterator[Progress | Draw]:
        """Does the work in a thread of its own, one at a time, and gives what it shows, then the draw."""
        session.stop.clear()
        shown: queue.Queue[Any] = queue.Queue()

        def show(progress: Progress) -> None:
            if session.stop.is_set() or self._over:
                raise Stopped
            shown.put(progress)

        def done() -> None:
            try:
                with self._lock:
                    if session.stop.is_set() or self._over:
                        raise Stopped
                    torch.set_num_threads(self._threads)  # a thread's own
                    found = work(show)
                session.keep(found)
                shown.put(found)
            except BaseException as error:  # of whatever kind: it is raised where it is waited for
                shown.put(error)

        thread = threading.Thread(target=done, name="draw", daemon=True)
        thread.start()
        try:
            while True:
                found = shown.get()
                while isinstance(found, Progress) and not shown.empty():  # the page is slower than the sampler
                    found = shown.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                if isinstance(found, Draw):
                    return
        finally:
            session.stop.set()
            thread.join(LEAVING)


class Watched:
    """A sampler that shows each of its steps, and some of its x_t as pictures.

    Those are nearest to evenly spaced angles of noise and signal. One is left out if decoding such frames, as of
    latents, has taken more time than sampling.

    Args:
        sampler: the reverse loop.
        model: it makes images of x_t.
        show: called with a `Progress`.
    """

    def __init__(self, sampler: Callable[..., Tensor], model: Any, show: Callable[[Progress], None]) -> None:
        self.sampler, self.model, self.show = sampler, model, show

    def __call__(self, *given: Any, **more: Any) -> Tensor:
        return self.sampler(*given, **more, watch=watching(self.sampler, self.model, self.show))


def watching(sampler: Any, model: Any, show: Callable[[Progress], None]) -> Callable[[int, Tensor], None]:
    """What a sampler calls with t and x_t at each of its steps."""
    angles = model.angles(sampler)
    times, angle = list(angles), torch.tensor(list(angles.values()), dtype=torch.float64)
    count = min(FRAMES, len(times) - 1)
    shown = {times[i] for i in nearest(angle[1:], torch.linspace(0, float(angle[-1]), count + 1).double()[1:])}
    total, done = len(times) - 1, -1

    def watch(t: int, x_t: Tensor) -> None:
        nonlocal done
        done += 1
        frame = tuple(map(png, preview(model.decoded(x_t)))) if t in shown and t > 0 else ()
        show(Progress(min(done, total), total, frame))

    return watch


def preview(x: Tensor) -> Tensor:
    """Images (B, C, H, W), those of many pixels averaged over squares, which is enough to see noise turn into them."""
    factor = -(-max(x.shape[2:]) // PREVIEW)
    return torch.nn.functional.avg_pool2d(x.float(), factor) if factor > 1 else x


def png(image: Tensor) -> bytes:
    """A picture of an image (C, H, W) in [-1, 1]."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(images.to_uint8(image).cpu().permute(1, 2, 0).squeeze(-1).numpy()).save(stream, "PNG")
    return stream.getvalue()


def names(paths: Sequence[str]) -> list[str]:
    """Short names of checkpoints, all different: the run's folder, and as much more as is needed."""
    found = []
    for path in map(Path, paths):
        parts = [part for part in path.parent.parts if part != "checkpoints"]
        short = parts[-1] if parts and path.stem in ("last", "best") else path.stem
        found.append(short if path.stem in ("last", short) else f"{short}/{path.stem}")
    if len(set(found)) < len(found):
        found = [str(path) for path in paths]
    return [name if found.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(found)]


def _end(session: Session) -> None:
    session.stop.set()
    with contextlib.suppress(OSError):
        shutil.rmtree(session.folder, ignore_errors=True)


def check_room(folder: Path) -> None:
    """Raise OSError if the folder for visitors' pictures cannot be written to."""
    files.check_writable(folder)
