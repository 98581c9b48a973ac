"""What the page of `app` looks like: style, script, and its texts as HTML in which all from elsewhere is escaped."""

import base64
import html
from collections.abc import Sequence

TITLE = "diffusion-lightning"
HINT = "Set the controls and press Draw: the samples appear here while the sampler goes from noise to image."
CHOOSE = "Click a sample to choose it, and a second one to go from one to the other."
PAINT = "Choose a sample above, then paint over what is to be drawn anew."

STYLE = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; padding: 12px 16px !important; }
#head h1 { font-size: 1.35rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
#head p { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: .9rem; overflow-wrap: anywhere; }
.cols { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.cols h3 { font-size: .9rem; font-weight: 600; margin: 0 0 6px; overflow-wrap: anywhere; }
.cells { display: grid; gap: 6px; max-width: var(--most);
  grid-template-columns: repeat(auto-fill, minmax(max(62px, calc(100% / var(--columns) - 6px)), 1fr)); }
.cells .cell, .pair .cell { display: block; padding: 0; border: 0; margin: 0; border-radius: 6px;
  box-shadow: 0 0 0 1px var(--border-color-primary);
  background: var(--border-color-primary); position: relative; overflow: hidden; line-height: 0; width: 100%; }
button.cell { cursor: pointer; outline-offset: 1px; }
button.cell:hover { outline: 2px solid var(--border-color-accent); }
button.cell:focus-visible { outline: 3px solid var(--color-accent); }
.cell img { width: 100%; height: auto; display: block; margin: 0 !important; }
.cell[data-mark] { outline: 3px solid var(--color-accent) !important; outline-offset: 1px; }
.cell[data-mark]::after { content: attr(data-mark); position: absolute; left: 0; top: 0; padding: 2px 7px 3px;
  font: 600 12px/1.2 system-ui, sans-serif; color: #fff; background: var(--color-accent); border-radius: 0 0 6px 0; }
.hint { border: 1px dashed var(--border-color-primary); border-radius: 10px; padding: 56px 20px; text-align: center;
  color: var(--body-text-color-subdued); }
.small { font-size: .85rem; color: var(--body-text-color-subdued); margin: 4px 0 !important; }
.said { font-size: .9rem; min-height: 1.5em; overflow-wrap: anywhere; }
.said.wrong { color: #b42318; background: #fef3f2; border: 1px solid #fda29b; border-radius: 8px; padding: 8px 12px; }
.dark .said.wrong { color: #fecdca; background: #3b1512; border-color: #7a271a; }
.bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; margin-top: 6px; }
.bar i { display: block; height: 100%; background: var(--color-accent); }
.pair { display: flex; gap: 14px; align-items: flex-end; flex-wrap: wrap; }
.pair figure { margin: 0; width: 112px; }
.pair figcaption { font-size: .8rem; color: var(--body-text-color-subdued); margin-top: 4px; line-height: 1.3; }
.paint canvas { width: min(100%, 384px); image-rendering: pixelated; touch-action: none; cursor: crosshair;
  border-radius: 8px; display: block; border: 1px solid var(--border-color-primary); }
.paint .tools { display: flex; gap: 10px; align-items: center; flex-wrap: wrap; margin: 10px 0; font-size: .9rem; }
.paint .tools input { accent-color: var(--color-accent); }
.paint .tools button, .paint .go { font: inherit; padding: 7px 14px; border-radius: 8px; cursor: pointer;
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); }
.paint .go { background: var(--button-primary-background-fill); color: var(--button-primary-text-color);
  border-color: transparent; font-weight: 600; min-width: 140px; }
.paint .tools button[aria-pressed=true] { outline: 2px solid var(--color-accent); }
.section h2 { font-size: 1.1rem; font-weight: 650; margin: 10px 0 0; }
.shell { border: 1px solid var(--border-color-primary); border-radius: 8px; background: var(--block-background-fill);
  padding: 10px 12px; margin-top: 4px; }
.shell .top { display: flex; justify-content: space-between; align-items: center; gap: 10px; font-size: .85rem;
  color: var(--body-text-color-subdued); }
.shell pre { font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 6px 0 0; background: none; padding: 0; color: var(--body-text-color); }
.shell pre span { display: inline-block; max-width: 100%; }
.shell button { font: inherit; padding: 3px 10px; border-radius: 6px; cursor: pointer;
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); }
.act { max-width: 240px; }
footer { display: none !important; }
"""

PICK = """
element.addEventListener('click', (event) => {
  const cell = event.target.closest('button.cell[data-draw]');
  if (cell) trigger('pick', {draw: cell.dataset.draw, index: Number(cell.dataset.index)});
});
"""

MARK = """
const mark = () => {
  document.querySelectorAll('button.cell[data-mark]').forEach((cell) => delete cell.dataset.mark);
  element.querySelectorAll('[data-of]').forEach((one) => {
    document.querySelectorAll('button.cell').forEach((cell) => {
      if (cell.dataset.draw === one.dataset.of && cell.dataset.index === one.dataset.index)
        cell.dataset.mark = one.dataset.name;
    });
  });
};
watch('value', mark);
"""

PAINTER = """
let mask = null, width = 0, height = 0, scale = 1, down = false, last = null, erase = false;
const find = (what) => element.querySelector(what);
const show = () => {
  const canvas = find('canvas'), picture = find('img');
  if (!canvas || !mask) return;
  const to = canvas.getContext('2d');
  to.imageSmoothingEnabled = false;
  to.drawImage(picture, 0, 0, canvas.width, canvas.height);
  to.fillStyle = 'rgba(225, 29, 72, 0.72)';
  for (let i = 0; i < mask.length; i++)
    if (mask[i]) to.fillRect((i % width) * scale, Math.floor(i / width) * scale, scale, scale);
};
const begin = () => {
  const paint = find('.paint'), picture = find('img'), canvas = find('canvas');
  mask = null; down = false; erase = false;
  if (!paint || !canvas) return;
  width = Number(paint.dataset.width); height = Number(paint.dataset.height);
  scale = Math.max(1, Math.floor(384 / Math.max(width, height)));
  canvas.width = width * scale; canvas.height = height * scale;
  mask = new Uint8Array(width * height);
  if (picture.complete) show(); else picture.addEventListener('load', show);
};
const place = (event) => {
  const box = find('canvas').getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
};
const dot = (x, y) => {
  const r = Number(find('input[type=range]').value) / 2;
  for (let i = Math.max(0, Math.floor(y - r)); i <= Math.min(height - 1, Math.floor(y + r)); i++)
    for (let j = Math.max(0, Math.floor(x - r)); j <= Math.min(width - 1, Math.floor(x + r)); j++)
      if ((i + 0.5 - y) ** 2 + (j + 0.5 - x) ** 2 <= r * r || (i === Math.floor(y) && j === Math.floor(x)))
        mask[i * width + j] = erase ? 0 : 1;
};
const stroke = (event) => {
  const [x, y] = place(event), [a, b] = last || [x, y];
  const count = Math.max(1, Math.ceil(2 * Math.hypot(x - a, y - b)));
  for (let k = 0; k <= count; k++) dot(a + (x - a) * k / count, b + (y - b) * k / count);
  last = [x, y]; show();
};
element.addEventListener('pointerdown', (event) => {
  if (event.target.tagName !== 'CANVAS' || !mask) return;
  event.preventDefault(); down = true; last = null;
  try { event.target.setPointerCapture(event.pointerId); } catch (error) {}
  stroke(event);
});
element.addEventListener('pointermove', (event) => { if (down && mask) stroke(event); });
['pointerup', 'pointercancel'].forEach((name) => element.addEventListener(name, () => { down = false; last = null; }));
element.addEventListener('click', (event) => {
  const name = event.target.closest('button') && event.target.closest('button').dataset.does;
  if (!name || !mask) return;
  if (name === 'erase') { erase = !erase; event.target.closest('button').setAttribute('aria-pressed', erase); }
  if (name === 'clear') { mask.fill(0); show(); }
  if (name === 'inpaint') {
    const bits = new Uint8Array(Math.ceil(mask.length / 8));
    mask.forEach((one, i) => { if (one) bits[i >> 3] |= 128 >> (i & 7); });
    let text = '';
    for (let i = 0; i < bits.length; i += 4096) text += String.fromCharCode(...bits.subarray(i, i + 4096));
    const paint = find('.paint');
    trigger('inpaint', {draw: paint.dataset.draw, index: Number(paint.dataset.index), mask: btoa(text)});
  }
});
watch('value', begin);
begin();
"""


COPY = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button[data-does=copy]');
  if (!button) return;
  const text = element.querySelector('pre').textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = 'Copied'; }
  catch (error) {
    const range = document.createRange();
    range.selectNodeContents(element.querySelector('pre'));
    getSelection().removeAllRanges(); getSelection().addRange(range);
    button.textContent = 'Selected: copy it by the keyboard';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 2000);
});
"""


def escaped(text: str) -> str:
    """A text as HTML that shows it, in which Gradio's templates find no expression of theirs either."""
    return "".join(f"&#{ord(letter)};" if letter in "{}$`\\" else letter for letter in html.escape(text))


def data(picture: bytes) -> str:
    """The address of a picture that holds it whole."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def hint(text: str = HINT) -> str:
    """What stands where pictures will be."""
    return f'<div class="hint">{escaped(text)}</div>'


def said(text: str) -> str:
    """A sentence."""
    return f'<div class="said" role="status">{escaped(text)}</div>'


def wrong(text: str) -> str:
    """A sentence that says what went wrong."""
    return f'<div class="said wrong" role="alert">{escaped(text)}</div>'


def progress(text: str, done: int, total: int) -> str:
    """A sentence and a bar."""
    part = 100 * done / max(total, 1)
    return (
        f'<div class="said" role="status">{escaped(text)}<div class="bar"><i style="width:{part:.1f}%"></i></div></div>'
    )


def column(title: str, pictures: Sequence[bytes], width: int, draw: str | None = None, across: int = 0) -> str:
    """Pictures side by side, under a title.

    Args:
        title: empty for none.
        pictures: PNGs.
        width: of a picture, in pixels.
        draw: whose they are, so that they can be chosen; None is a frame of a chain.
        across: how many in a row where there is room; 0 is by their number.
    """
    count = len(pictures)
    across = across or (8 if count > 36 else 6 if count > 16 else 4)
    cells = []
    for i, picture in enumerate(pictures):
        image = f'<img src="{data(picture)}" alt="sample {i}" draggable="false">'
        cells.append(
            f'<div class="cell">{image}</div>'
            if draw is None
            else f'<button type="button" class="cell" data-draw="{escaped(draw)}" data-index="{i}" '
            f'aria-label="choose sample {i}">{image}</button>'
        )
    heading = f"<h3>{escaped(title)}</h3>" if title else ""
    style = f"--columns:{across};--most:{across * max(176, min(width, 512)) + 6 * across}px"
    return f'<section>{heading}<div class="cells" style="{style}">{"".join(cells)}</div></section>'


def commands(texts: Sequence[str], note: str = "") -> str:
    """Commands to copy, one a line; empty for none."""
    if not texts:
        return ""
    # Each word whole where it fits: a browser would break lines within --options.
    lines = "\n".join(" ".join(f"<span>{escaped(word)}</span>" for word in text.split(" ")) for text in texts)
    return (
        f'<div class="shell"><div class="top"><span>the same by command{escaped(note)}</span>'
        f'<button type="button" data-does="copy">Copy</button></div><pre>{lines}</pre></div>'
    )


def columns(parts: Sequence[str]) -> str:
    """Columns side by side, one below the other where it is narrow."""
    return f'<div class="cols">{"".join(parts)}</div>'


def pair(chosen: Sequence[tuple[str, int, bytes, str]]) -> str:
    """The chosen samples: each the draw's name, its index, its picture and what is said of it."""
    if not chosen:
        return f'<p class="small">{escaped(CHOOSE)}</p>'
    figures = []
    for name, (draw, index, picture, text) in zip("AB", chosen, strict=False):
        figures.append(
            f'<figure data-of="{escaped(draw)}" data-index="{index}" data-name="{name}"><div class="cell" '
            f'data-mark="{name}"><img src="{data(picture)}" alt="{name}"></div>'
            f"<figcaption>{escaped(text)}</figcaption></figure>"
        )
    more = f'<p class="small">{escaped(CHOOSE)}</p>' if len(chosen) == 1 else ""
    return f'<div class="pair">{"".join(figures)}{more}</div>'


def seen(picture: bytes, text: str) -> str:
    """What a model sees of a picture that is given."""
    return (
        f'<div class="pair"><figure><div class="cell"><img src="{data(picture)}" alt="what the model sees"></div>'
        f'</figure><p class="small">{escaped(text)}</p></div>'
    )


def painter(draw: str, index: int, picture: bytes, height: int, width: int) -> str:
    """A canvas to paint over a picture."""
    largest, begin = max(2, max(height, width) // 2), max(1, round(max(height, width) / 5))
    return (
        f'<div class="paint" data-draw="{escaped(draw)}" data-index="{index}" data-height="{height}" '
        f'data-width="{width}"><img src="{data(picture)}" alt="" hidden style="display:none">'
        '<canvas aria-label="paint over what is to be drawn anew"></canvas><div class="tools">'
        f'<label>brush <input type="range" min="1" max="{largest}" value="{begin}" step="1"></label>'
        '<button type="button" data-does="erase" aria-pressed="false">Erase</button>'
        '<button type="button" data-does="clear">Clear</button></div>'
        '<button type="button" class="go" data-does="inpaint">Inpaint</button></div>'
    )
