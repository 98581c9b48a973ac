"""The page of `app`, in Gradio: controls, pictures, and which of the work each button asks for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..cli import pictures
from ..images import SUFFIXES
from . import commands, looks
from .asked import NONE, form, painted, sentence, shell, steps_of, whole
from .commands import MOST, SAMPLERS, Facts, Form
from .sessions import Chosen, Draw, Session
from .watch import Stopped, png
from .work import Studio

WAITING = 32  # requests of all visitors at most
UPLOAD = "20mb"
KEPT = (3600, 86_400)  # seconds: how often uploads are looked at, and how old they grow
LIE = "; its pictures lie there until the page is closed"
TURN = "waits for its turn …"
ACROSS = 8  # images of an edit in a row
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

Update = dict[Any, Any]


def page(studio: Studio) -> Any:
    """The page as an ASGI application, Gradio's own in FastAPI's."""
    from fastapi import FastAPI

    blocks = Page(studio).blocks
    theme = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO)
    plain = {"block_title_background_fill": "transparent", "block_title_padding": "0", "block_title_text_weight": "500"}
    plain |= {"block_title_text_color": "*body_text_color", "block_title_text_color_dark": "*body_text_color"}
    theme.set(
        **plain, block_title_background_fill_dark="transparent", body_background_fill="*background_fill_secondary"
    )
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
        with gr.Blocks(title=looks.TITLE, analytics_enabled=False, fill_width=True, delete_cache=KEPT) as self.blocks:
            self._head()
            with gr.Row(equal_height=False):
                with gr.Column(scale=1, min_width=300):
                    self._controls()
                with gr.Column(scale=3, min_width=300):
                    self.status = gr.HTML(looks.said(""))
                    self.samples = gr.HTML(looks.hint(), js_on_load=looks.PICK)
                    self.command = gr.HTML("", js_on_load=looks.COPY, elem_id="command")
                    with gr.Column(visible=any(x.edits for x in studio.models)):
                        self._edits()
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
        self.prompt = gr.Textbox(label="prompt", placeholder="none: held-out captions", **first["prompt"])
        self.negative = gr.Textbox(label="negative prompt", **first["negative"])
        self.guidance = gr.Slider(1, 12, 1, step=0.1, label="guidance scale; 1 is none", **first["guidance"])
        self.sampler = gr.Dropdown(label="sampler", **first["sampler"])
        self.steps = gr.Slider(1, step=1, label="steps", **first["steps"])
        self.n = gr.Slider(1, MOST, 16, step=1, label="samples")
        self.seed = gr.Number(0, label="seed", precision=0, minimum=0)
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", min_width=110, elem_id="draw")
            self.stop = gr.Button("Stop", variant="stop", min_width=80, elem_id="stop")

    def _edits(self) -> None:
        gr.HTML("<h2>Edit</h2>", elem_classes="section")
        self.chosen = gr.HTML(looks.pair([]), js_on_load=looks.MARK)
        with gr.Tabs():
            with gr.Tab("Interpolate"):
                self.frames = gr.Slider(3, 16, 8, step=1, label="images from A to B")
                self.interpolate = gr.Button(
                    "Interpolate", variant="primary", elem_id="interpolate", elem_classes="act"
                )
            with gr.Tab("Inpaint"):
                with gr.Row():
                    self.inpainted = gr.Slider(1, 16, 4, step=1, label="samples", min_width=140)
                    self.resample = gr.Slider(1, 20, 5, step=1, label="times that each step is taken", min_width=140)
                self.painter = gr.HTML(looks.hint(looks.PAINT), js_on_load=looks.PAINTER)
            with gr.Tab("Vary"):
                self.file = gr.File(
                    label="a picture; none is the sample chosen last", file_types=["image"], type="filepath", height=120
                )
                self.seen = gr.HTML("")
                with gr.Row():
                    self.strength = gr.Slider(
                        0, 1, 0.5, step=0.05, label="strength: 0 keeps all, 1 nothing", min_width=140
                    )
                    self.varied = gr.Slider(1, 16, 4, step=1, label="samples", min_width=140)
                self.vary = gr.Button("Vary", variant="primary", elem_id="vary", elem_classes="act")
        self.edited_status = gr.HTML("")
        self.edited = gr.HTML("", js_on_load=looks.PICK)
        self.edited_command = gr.HTML("", js_on_load=looks.COPY, elem_id="edited_command")

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

    # Events

    def _events(self) -> None:
        private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        slow = {**private, "concurrency_id": "model", "concurrency_limit": 1}
        quick = {**private, "queue": False}
        words = [self.model, self.n, self.seed, self.sampler, self.steps, self.guidance, self.y, self.prompt]
        words.append(self.negative)
        of_model = [self.y, self.prompt, self.negative, self.guidance, self.sampler, self.steps]
        self.model.change(self.on_model, [self.model], of_model, **quick)
        drawn = [self.status, self.samples, self.command, self.chosen, self.painter]
        self.draw.click(self.on_draw, [self.beside, *words], drawn, **slow)
        self.stop.click(self.on_stop, None, None, **quick)
        for cells in (self.samples, self.edited):
            cells.pick(self.on_pick, None, [self.chosen, self.painter, self.edited_status], **quick)
        self.file.change(self.on_file, [self.file, self.model], [self.seen], **quick)
        made = [self.edited_status, self.edited, self.edited_command]
        self.interpolate.click(self.on_interpolate, [self.frames, *words], made, **slow)
        self.painter.inpaint(self.on_inpaint, [self.inpainted, self.resample, *words], made, **slow)
        self.vary.click(self.on_vary, [self.file, self.strength, self.varied, *words], made, **slow)
        self.blocks.unload(self.on_leave)

    def on_model(self, model: Any) -> list[Any]:
        found = self._of_model(self._index(model))
        return [gr.update(**found[name]) for name in ("y", "prompt", "negative", "guidance", "sampler", "steps")]

    def on_stop(self, request: gr.Request) -> None:
        self._session(request).stop.set()

    def on_leave(self, request: gr.Request) -> None:
        self.studio.sessions.leave(str(request.session_hash))

    def on_draw(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        yield from told(self.status, self._drawn(self._begun(request), *values))

    def _drawn(self, session: Session, beside: Any, model: Any, *values: Any) -> Iterator[Update]:
        which = [self._index(model)]
        if beside != NONE and self._index(beside) not in which:
            which.append(self._index(beside))
        session.chosen.clear()
        yield {self.status: looks.said(TURN), self.command: "", **self._shown(session)}
        parts = [""] * len(which)
        words: list[tuple[str, ...]] = []
        for k, i in enumerate(which):
            title = self.studio.models[i].name if len(which) > 1 else ""
            for found in self.studio.predict(session, i, self._form(i, model, *values)):
                if isinstance(found, Draw):
                    parts[k], words = self._column(found, title), [*words, found.words]
                else:
                    parts[k] = looks.column(title, found.frame, 0) if found.frame else parts[k]
                    yield {self.status: looks.progress(steps_of(found, title), found.done, found.total)}
                if isinstance(found, Draw):
                    yield {
                        self.samples: looks.columns(parts),
                        self.command: looks.commands([shell(of) for of in words]),
                    }
                elif found.frame:
                    yield {self.samples: looks.columns(parts)}
        yield {self.status: looks.said(looks.CHOOSE if any(x.edits for x in self.studio.models) else "")}

    def on_pick(self, event: gr.EventData, request: gr.Request) -> Update:
        session = self._session(request)
        try:
            session.choose(event.draw, event.index)
        except ValueError as error:
            return {self.edited_status: looks.wrong(str(error))}
        return self._shown(session)

    def _shown(self, session: Session) -> Update:
        """The chosen samples, and the last of them to paint over."""
        if not session.chosen:
            return {self.chosen: looks.pair([]), self.painter: looks.hint(looks.PAINT)}
        found = [(x.draw.id, x.index, x.path.read_bytes(), self._said(x)) for x in session.chosen]
        draw, index, picture, _ = found[-1]
        _, height, width = self.studio.models[session.chosen[-1].draw.model].shape
        return {self.chosen: looks.pair(found), self.painter: looks.painter(draw, index, picture, height, width)}

    def _said(self, chosen: Chosen) -> str:
        model = self.studio.models[chosen.draw.model].name
        made = chosen.draw.words[1] if chosen.draw.words[0] == "edit" else "drawn"
        return f"sample {chosen.index}, {made}" + (f", {model}" if len(self.studio.models) > 1 else "")

    def on_file(self, file: str | None, model: Any) -> str:
        """What the model will see of an uploaded picture; the picture itself is never shown."""
        if not file:
            return ""
        try:
            image, said = pictures.picture(file, self.studio.models[self._index(model)].shape)
        except Exception as error:
            return looks.wrong(sentence(error).replace(file, Path(file).name))
        return looks.seen(png(image), said)

    def on_interpolate(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        yield from told(self.edited_status, self._interpolated(self._begun(request), *values))

    def _interpolated(self, session: Session, frames: Any, *values: Any) -> Iterator[Update]:
        if len(session.chosen) < 2:
            raise ValueError(f"an interpolation needs two samples, but {len(session.chosen)} are chosen: click two")
        a, b = session.chosen
        model, asked = self._editor(a.draw.model), self._form(a.draw.model, *values)
        own = commands.inverting(asked, model)
        note = "" if own == asked else f"by the model's own sampler, since {asked.sampler} adds noise of its own"
        given = {"a.png": a.path, "b.png": b.path}
        options = {"frames": whole(frames, "the number of images")}
        yield from self._edited(session, a.draw.model, "interpolate", given, options, own, note=note)

    def on_inpaint(self, request: gr.Request, event: gr.EventData, *values: Any) -> Iterator[Update]:
        yield from told(self.edited_status, self._inpainted(self._begun(request), event, *values))

    def _inpainted(self, session: Session, event: Any, count: Any, resample: Any, *values: Any) -> Iterator[Update]:
        chosen = session.find(event.draw, event.index)
        model = self._editor(chosen.draw.model)
        mask = painted(event.mask, *model.shape[1:])
        options = {"n": whole(count, "the number of samples"), "resample": whole(resample, "the number of times")}
        given = {"picture.png": chosen.path}
        yield from self._edited(
            session, chosen.draw.model, "inpaint", given, options, self._form(chosen.draw.model, *values), mask
        )

    def on_vary(self, request: gr.Request, *values: Any) -> Iterator[Update]:
        yield from told(self.edited_status, self._varied(self._begun(request), *values))

    def _varied(
        self, session: Session, file: Any, strength: Any, count: Any, model: Any, *values: Any
    ) -> Iterator[Update]:
        if file:
            which, path = self._index(model), Path(file)
        elif session.chosen:
            which, path = session.chosen[-1].draw.model, session.chosen[-1].path
        else:
            raise ValueError("there is no picture to vary: drop one, or click a sample")
        self._editor(which)
        suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".png"
        options = {"strength": float(strength or 0), "n": whole(count, "the number of samples")}
        yield from self._edited(
            session, which, "vary", {f"picture{suffix}": path}, options, self._form(which, model, *values)
        )

    def _edited(
        self,
        session: Session,
        model: int,
        action: str,
        given: dict[str, Path],
        options: dict[str, Any],
        asked: Form,
        mask: bytes | None = None,
        note: str = "",
    ) -> Iterator[Update]:
        yield {self.edited_status: looks.said(TURN), self.edited: "", self.edited_command: ""}
        for found in self.studio.edit(session, model, action, given, options, asked, mask):
            if isinstance(found, Draw):
                yield {
                    self.edited_status: looks.said("; ".join(filter(None, [*found.said, note]))),
                    self.edited: looks.columns([self._column(found, "", ACROSS)]),
                    self.edited_command: looks.commands([shell(found.words)], LIE),
                }
                return
            update = {self.edited_status: looks.progress(steps_of(found, action), found.done, found.total)}
            if found.frame:
                update[self.edited] = looks.columns([looks.column("", found.frame, 0, across=ACROSS)])
            yield update

    def _column(self, draw: Draw, title: str, across: int = 0) -> str:
        found = [path.read_bytes() for path in draw.pictures]
        return looks.column(title, found, self.studio.models[draw.model].shape[2], draw.id, across)

    # What comes from the browser

    def _session(self, request: gr.Request) -> Session:
        return self.studio.sessions.of(str(request.session_hash))

    def _begun(self, request: gr.Request) -> Session:
        """The session of a request whose turn has come: what was stopped before is another."""
        session = self._session(request)
        session.stop.clear()
        return session

    def _index(self, model: Any) -> int:
        """The checkpoint that a control means; raise ValueError if there is none."""
        if isinstance(model, int) and 0 <= model < len(self.studio.models):
            return model
        raise ValueError(f"there is no checkpoint {model}: choose one of the list")

    def _form(self, model: int, shown: Any, *values: Any) -> Form:
        """What the controls, which are those of the checkpoint that is shown, say to one."""
        asked, own = form(*values), self.studio.models[self._index(shown)]
        return asked if model == shown else commands.translated(asked, own, self.studio.models[model])

    def _editor(self, model: int) -> Facts:
        """A model that can edit; raise ValueError if it cannot."""
        if not (found := self.studio.models[model]).edits:
            raise ValueError(
                f"{found.name} has no way from any noise to an image, so it edits none: choose a Diffusion's checkpoint"
            )
        return found


def told(status: Any, updates: Iterator[Update]) -> Iterator[Update]:
    """The updates, and at a fault one sentence in their place; the page goes on."""
    try:
        yield from updates
    except Stopped:
        yield {status: looks.said("stopped; what is seen was on its way from noise")}
    except Exception as error:
        yield {status: looks.wrong(sentence(error))}
    except SystemExit:  # of the parser, whose sentence stands in the terminal
        yield {status: looks.wrong("the command takes no such words: the terminal says why")}


def _numbered(k: int, name: str) -> str:
    return name if name == str(k) else f"{k}  {name}"
