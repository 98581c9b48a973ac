"""The work behind the page of `app`: models that stay open, and one request at a time.

A request is a command's words. They are parsed by that command's own parser and done by its own code, so the command
that the page shows makes the same pictures.
"""

import queue
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..callbacks import SampleWriter
from ..cli import drawing, edit, edited, predict, run_folder
from . import commands
from .commands import Facts, Form, Places
from .sessions import Draw, Session, Sessions
from .watch import FRAMES, Progress, Show, Stopped, Watch, Watched

LEAVING = 20.0  # seconds that a chain has to end its step when the page is closed


class Studio:
    """Models that stay open, and what visitors ask of them.

    Args:
        paths: of the checkpoints.
        places: the device, and whom to trust.
        folder: for all that visitors make; who gives it removes it.

    Raises:
        ValueError: if a checkpoint cannot be opened, or its model draws no pictures.
    """

    def __init__(self, paths: Sequence[str], places: Places, folder: Path) -> None:
        self.places, self.sessions = places, Sessions(folder)
        self._opened: dict[tuple[str, str], tuple[tuple[int, int], drawing.Opened]] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = torch.get_num_threads()
        found = [run_folder.chosen(path) for path in paths]
        self.models = [self._facts(name, path) for name, path in zip(names(found), found, strict=True)]

    def _facts(self, name: str, path: str) -> Facts:
        opened = self.open(path, self.places.trust)
        if opened.model.shape[0] not in (1, 3):
            raise ValueError(
                f"{path} draws {opened.model.shape[0]} channels, but a picture has 1 or 3: give the checkpoint of a "
                "model of pictures"
            )
        return commands.facts(name, path, opened, self.places.trust)

    def open(self, path: str, trust: Collection[str] = (), command: str = "predict") -> drawing.Opened:
        """An opened checkpoint; one whose file was written anew in the meantime is read anew.

        On an accelerator each command has a model of its own: `predict` gives the network another memory format there,
        whose rounding `edit` has not.
        """
        key = ("" if self.places.device.type == "cpu" else command, path)
        try:
            state = Path(path).stat()
            now = (state.st_mtime_ns, state.st_size)
        except OSError:
            now = (0, 0)  # what is wrong is said where it is read
        kept = self._opened.get(key)
        if kept is None or kept[0] != now:
            self._opened[key] = kept = (now, drawing.opened(path, trust))
        return kept[1]

    def close(self) -> None:
        """Stops what is being drawn, and waits for it to leave."""
        self._over.set()
        self.sessions.close()
        if self._lock.acquire(timeout=LEAVING):
            self._lock.release()

    def predict(self, session: Session, model: int, form: Form) -> Iterator[Progress | Draw]:
        """Draws samples as `predict` does; what it gives last is the draw.

        Raises:
            ValueError: if the model cannot draw what is asked for.
            Stopped: if the visitor stops it.
        """
        words = commands.predicting(form, self.models[model], self.places)

        def work(folder: Path, show: Show) -> Draw:
            parser = predict.make_parser()
            config = parser.parse_args(words[1:])
            texts = predict.given_prompts(config)
            drawn = drawing.read(parser, config, texts, self.open)
            sampler = None if drawn.sampler is None else Watched(drawn.sampler, drawn.model, show, config.n)
            writer = SampleWriter(folder, drawn.made, None, drawn.asked.prompt)
            requests = predict.Requests(predict.asked_of(drawn, config, sampler))
            trainer = predict.make_trainer(config, [writer])
            trainer.predict(drawn.model, datamodule=requests, return_predictions=False)
            return Draw(folder.name, folder, tuple(sorted(folder.glob("*.png"))), model, tuple(words))

        return self._run(session, work)

    def edit(
        self,
        session: Session,
        model: int,
        action: str,
        pictures: Mapping[str, Path],
        options: Mapping[str, object],
        form: Form,
        mask: bytes | None = None,
    ) -> Iterator[Progress | Draw]:
        """Edits pictures as `edit` does; what it gives last is the draw.

        The pictures are copied into the draw's folder first, so that the shown command finds them there.

        Args:
            session: the visitor's.
            model: index of the checkpoint.
            action: of `edit`.
            pictures: files by the names that they get.
            options: of the action.
            form: the sampler, the condition and the seed.
            mask: a picture (PNG), white where the picture is drawn anew; None is none.

        Raises:
            ValueError: if a picture cannot be read, or the model cannot do what is asked for.
            Stopped: if the visitor stops it.
        """

        def work(folder: Path, show: Show) -> Draw:
            own = [folder / name for name in pictures]
            for place, path in zip(own, pictures.values(), strict=True):
                shutil.copyfile(path, place)
            more = dict(options)
            if mask is not None:
                (folder / "mask.png").write_bytes(mask)
                more["mask"] = folder / "mask.png"
            words = commands.editing(action, own, more, form, self.models[model], self.places)
            parser = edit.make_parser(action)
            asked = edit.request(action, parser, parser.parse_args(words[2:]), partial(self.open, command="edit"))
            total = asked.edit.calls(action, **asked.given)
            framed = [round(k * total / FRAMES) for k in range(1, FRAMES)]
            asked.edit.watch = Watch(asked.edit.model, show, total, framed, asked.count)
            result = asked.make()
            edited.Out(str(folder / "made"), asked.made).write(result)
            made = tuple(sorted((folder / "made").glob("*.png")))
            return Draw(folder.name, folder, made, model, tuple(words), (*asked.said, *result.said))

        return self._run(session, work)

    def _run(self, session: Session, work: Callable[[Path, Show], Draw]) -> Iterator[Progress | Draw]:
        """Does the work in a thread of its own, one at a time, and gives what it shows, then the draw."""
        gone = threading.Event()  # nobody waits for it any more
        shown: queue.Queue[Any] = queue.Queue()

        def show(progress: Progress) -> None:
            if gone.is_set() or session.stop.is_set() or session.ended or self._over.is_set():
                raise Stopped
            shown.put(progress)

        def done() -> None:
            folder = None
            try:
                with self._lock:
                    show(Progress(0, 1))
                    torch.set_num_threads(self._threads)  # a thread has its own number
                    folder = session.new_folder()
                    found = work(folder, show)
                session.keep(found)
                shown.put(found)
            except BaseException as error:  # of any kind: it is raised where it is waited for
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                shown.put(error)

        thread = threading.Thread(target=done, name="draw", daemon=True)
        thread.start()
        try:
            while True:
                found = shown.get()
                while isinstance(found, Progress) and not shown.empty():  # the page is slower than the sampler
                    later = shown.get()
                    if isinstance(later, Progress) and not later.frame:
                        later = Progress(later.done, later.total, found.frame)
                    found = later
                if isinstance(found, BaseException):
                    raise found
                yield found
                if isinstance(found, Draw):
                    return
        finally:
            gone.set()
            thread.join(LEAVING)


def names(paths: Sequence[str]) -> list[str]:
    """Short names of checkpoints, all different: the run's folder, and the file's name unless it is the last."""
    found = []
    for path in map(Path, paths):
        parts = [part for part in path.parent.parts if part not in ("checkpoints", "/")]
        run = parts[-1] if parts else ""
        found.append("/".join(filter(None, [run, "" if run and path.stem == "last" else path.stem])))
    if len(set(found)) < len(found):
        found = list(paths)
    return [name if found.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(found)]
