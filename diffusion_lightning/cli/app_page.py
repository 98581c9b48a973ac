"""The page of `app`, in Gradio: controls, pictures, and which of the work each button asks for."""

import shlex
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from . import app_looks as looks
from .app_words import MOST, PROGRAM, SAMPLERS, Form
from .app_work import Chosen, Draw, Progress, Session, Stopped, Studio
from .errors import of_the_system, raised_in

PACKAGE = __package__.partition(".")[0]
WAITING = 32  # requests of all visitors at most
UPLOAD = "20mb"
NONE = -1  # of a checkpoint or a class: no choice
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

Update = dict[Any, Any]


def page(studio: Studio) -> Any:
    """The page as an ASGI application, Gradio's own in FastAPI's."""
    from fastapi import FastAPI

    blocks = Page(studio).blocks
    theme = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO)
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks, "/", theme=theme, css=looks.STYLE,
        max_file_size=UPLOAD, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False,
        enable_monitoring=False, show_error=False,
    )  # fmt: skip


class Page:
    """The page's parts, and what happens when they are used.

    Args:
        studio: does the work.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        with gr.Blocks(title=looks.TITLE, analytics_enabled=False, fill_width=True) as self.blocks:
            self._head()
            with gr.Row(equal_height=False):
                with gr.Column(scale=1, min_width=300):
                    self._controls()
                with gr.Column(scale=3, min_width=320):
                    self.status = gr.HTML(looks.said(""))
                    self.samples = gr.HTML(looks.hint(), js_on_load=looks.PICK)
                    self.command = gr.Textbox(
                        label="the same by command", lines=2, max_lines=6, interactive=False, elem_id="command",
                        buttons=["copy"], visible=False,
                    )  # fmt: skip
            self._events()
        self.blocks.queue(max_size=WAITING, api_open=False)

    # Its parts

    def _head(self) -> None:
        names = " · ".join(f"{x.name} ({'×'.join(map(str, x.shape))})" for x in self.studio.models)
        gr.HTML(f"<h1>{looks.TITLE}</h1><p>{looks.escaped(names)}</p>", elem_id="head")

    def _controls(self) -> None:
        models = self.studio.models
        own = [(x.name, i) for i, x in enumerate(models)]
        several = len(models) > 1
        self.model = gr.Dropdown(own, value=0, label="checkpoint", visible=several)
        self.beside = gr.Dropdown(
            [("none", NONE), *own],
            value=1 if several else NONE,
            label="beside it, from the same noise",
            visible=several,
        )
        first = self._of_model(0)
        self.y = gr.Dropdown(label="class", **first["y"])
        self.prompt = gr.Textbox(
            label="prompt", max_length=2000, placeholder="none: held-out captions", **first["prompt"]
        )
        self.negative = gr.Textbox(label="negative prompt", max_length=2000, **first["negative"])
        self.guidance = gr.Slider(1, 12, 1, step=0.1, label="guidance scale; 1 is none", **first["guidance"])
        self.sampler = gr.Dropdown(SAMPLERS, label="sampler", **first["sampler"])
        self.steps = gr.Slider(1, step=1, label="steps", **first["steps"])
        with gr.Row():
            self.n = gr.Slider(1, MOST, 16, step=1, label="samples", min_width=140)
            self.seed = gr.Number(0, label="seed", precision=0, minimum=0, min_width=110)
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", min_width=110, elem_id="draw")
            self.stop = gr.Button("Stop", variant="stop", min_width=80, elem_id="stop")

    def _of_model(self, i: int) -> dict[str, dict[str, Any]]:
        """What the controls of a model show."""
        x = self.studio.models[i]
        labels = [("each in turn", NONE), *((_numbered(k, name), k) for k, name in enumerate(x.labels))]
        drawn = x.sampler is not None
        own = [] if x.sampler_name in SAMPLERS or not drawn else [x.sampler_name]
        return {
            "y": {"choices": labels, "value": NONE, "visible": bool(x.labels)},
            "prompt": {"visible": x.captions},
            "negative": {"visible": x.captions and x.guided},
            "guidance": {"visible": x.guided},
            "sampler": {"choices": [*SAMPLERS, *own], "value": x.sampler_name, "visible": drawn},
            "steps": {"maximum": max(x.T, 2), "value": max(x.steps, 1), "visible": drawn},
        }

    @property
    def _form(self) -> list[Any]:
        return [self.n, self.seed, self.sampler, self.steps, self.guidance, self.y, self.prompt, self.negative]

    # Events

    def _events(self) -> None:
        def drawing(fn: Callable) -> dict[str, Any]:
            return {
                "fn": fn, "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden",
                "api_visibility": "private",
            }  # fmt: skip

        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        changed = [self.y, self.prompt, self.negative, self.guidance, self.sampler, self.steps]
        self.model.change(self.on_model, [self.model], changed, **quick)
        outputs = [self.status, self.samples, self.command]
        self.draw.click(inputs=[self.model, self.beside, *self._form], outputs=outputs, **drawing(self.on_draw))
        self.stop.click(self.on_stop, None, None, **quick)
        self.blocks.unload(self.on_leave)

    def on_model(self, model: int) -> list[Any]:
        found = self._of_model(self._index(model))
        return [gr.update(**found[name]) for name in ("y", "prompt", "negative", "guidance", "sampler", "steps")]

    def on_stop(self, request: gr.Request) -> None:
        self._session(request).stop.set()

    def on_leave(self, request: gr.Request) -> None:
        self.studio.leave(str(request.session_hash))

    def on_draw(
        self,
        model: Any,
        beside: Any,
        n: Any,
        seed: Any,
        sampler: Any,
        steps: Any,
        guidance: Any,
        y: Any,
        prompt: Any,
        negative: Any,
        request: gr.Request,
    ) -> Iterator[Update]:
        values = (n, seed, sampler, steps, guidance, y, prompt, negative)
        yield from self._told(self._drawn(self._session(request), model, beside, values))

    def _drawn(self, session: Session, model: Any, beside: Any, values: tuple[Any, ...]) -> Iterator[Update]:
        form = asked(*values)
        which = [self._index(model)]
        if beside != NONE and self._index(beside) not in which:
            which.append(self._index(beside))
        session.chosen.clear()
        yield {self.status: looks.said("waits for its turn …")}
        parts: list[str] = [""] * len(which)
        words: list[tuple[str, ...]] = []
        for k, i in enumerate(which):
            title = self.studio.models[i].name if len(which) > 1 else ""
            for found in self.studio.predict(session, i, form):
                if isinstance(found, Draw):
                    parts[k], words = self._column(found, title), [*words, found.words]
                    yield {self.samples: looks.columns(parts)}
                else:
                    yield self._step(found, title, parts, k)
        yield {
            self.status: looks.said(looks.CHOOSE),
            self.command: gr.update(value="\n".join(map(command, words)), visible=True, lines=2 * len(words)),
        }

    def _step(self, found: Progress, title: str, parts: list[str], k: int) -> Update:
        """How far a chain is, and its frame if it has one."""
        of = f"{title}: " if title else ""
        update = {self.status: looks.progress(f"{of}step {found.done} of {found.total}", found.done, found.total)}
        if found.frame:
            parts[k] = looks.column(title, found.frame, 0)
            update[self.samples] = looks.columns(parts)
        return update

    def _column(self, draw: Draw, title: str) -> str:
        pictures = [path.read_bytes() for path in draw.pictures]
        return looks.column(title, pictures, self.studio.models[draw.model].shape[2], draw.id)

    def _told(self, updates: Iterator[Update]) -> Iterator[Update]:
        """The updates, and at a fault one sentence in their place; the page goes on."""
        try:
            yield from updates
        except Stopped:
            yield {self.status: looks.said("stopped; what is seen is on its way from noise")}
        except Exception as error:
            yield {self.status: looks.wrong(sentence(error))}
        except SystemExit:  # of the parser, whose sentence stands in the terminal
            yield {self.status: looks.wrong("the command takes no such words; the terminal says why")}

    # What comes from the browser

    def _session(self, request: gr.Request) -> Session:
        return self.studio.session(str(request.session_hash))

    def _index(self, model: Any) -> int:
        """The checkpoint that a control means; raise ValueError if there is none."""
        if isinstance(model, int) and 0 <= model < len(self.studio.models):
            return model
        raise ValueError(f"there is no checkpoint {model}: choose one of the list")


def asked(n: Any, seed: Any, sampler: Any, steps: Any, guidance: Any, y: Any, prompt: Any, negative: Any) -> Form:
    """What the controls say.

    Raises:
        ValueError: if one is empty.
    """
    return Form(
        whole(n, "the number of samples"), whole(seed, "the seed"), sampler or None,
        whole(steps, "the number of steps"), float(guidance or 1), None if y in (None, NONE) else whole(y, "the class"),
        str(prompt or ""), str(negative or ""),
    )  # fmt: skip


def whole(value: Any, name: str) -> int:
    """A whole number of a control; raise ValueError if it is none."""
    if isinstance(value, int | float) and value == value and abs(value) < 2**64 and value == int(value):
        return int(value)
    raise ValueError(f"{name} is {value}, but a whole number is needed: give one")


def command(words: tuple[str, ...]) -> str:
    """A command as one writes it in a shell."""
    return shlex.join([PROGRAM, *words])


def sentence(error: Exception) -> str:
    """What went wrong, in one sentence; what is no fault of a request is printed with its traceback too."""
    if isinstance(error, ValueError) and raised_in(error) == PACKAGE:
        return str(error)
    if isinstance(error, OSError):
        return of_the_system(error)
    traceback.print_exception(error)
    first = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {first}; the terminal says more"


def _numbered(k: int, name: str) -> str:
    return name if name == str(k) else f"{k}  {name}"


__all__ = ["Chosen", "page"]
