"""Pictures decoded once, all of them, before the first step: so a damaged file is found at the start, and named."""

import errno
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from ...images import Source
from .picture import Decoded, OtherSize, ResizeCrop
from .store import cached

FORMAT = 2  # of what is decoded: a new number makes earlier files be made again
AT_ONCE, BYTES_AT_ONCE = 1024, 2**28  # pictures in flight, and bytes of them
LEADS_NOWHERE = (errno.ENOENT, errno.ELOOP)  # a link to no file: the picture's fault, and not the disk's

OnError = Literal["raise", "skip"]
Outcome = Decoded | str


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures, by number.

    Args:
        names: what each is called in a message.
        source: the file or the encoded bytes of number i.
        key: a hash that changes when any of them does.
    """

    names: Sequence[str]
    source: Callable[[int], Source]
    key: str


def decode(pictures: Pictures, resize: ResizeCrop, on_error: OnError, max_memory_gib: float) -> tuple[Tensor, Tensor]:
    """Bytes (M, C, H, W), and the numbers (M,) of the pictures that they are, in order.

    They are kept in the user's cache (`$DIFFUSION_LIGHTNING_CACHE`): a second start decodes nothing.

    Args:
        pictures: the encoded ones.
        resize: brings each to bytes of one shape.
        on_error: `raise` refuses those that cannot be read, `skip` leaves them out with a warning; both name them.
        max_memory_gib: up to how many GiB they are read into memory; more stay in a mapped file.

    Raises:
        ValueError: if some cannot be read and are not to be skipped, if none can, or if sizes differ.
    """

    def write(stream: IO[bytes]) -> dict[str, Any]:
        notes: dict[str, Any] = {"broken": {}, "enlarged": 0, "more": 0}
        for i, outcome in enumerate(_outcomes(pictures, resize)):
            if isinstance(outcome, str):
                notes["broken"][str(i)] = outcome
            else:
                stream.write(outcome.pixels.tobytes())
                notes["enlarged"] += outcome.enlarged
                notes["more"] += outcome.more
        _check(pictures, notes, on_error)
        return notes

    # As earlier versions wrote it, so that what they decoded is found.
    shape = f"Fit(shape={resize.shape}, keep={resize.keep}, box={resize.box})"
    images, notes = cached(fingerprint([FORMAT, shape, pictures.key]), resize.shape, write, max_memory_gib)
    _check(pictures, notes, on_error)
    _warn(pictures, notes, resize)
    kept = torch.ones(len(pictures.names), dtype=torch.bool)
    kept[[int(i) for i in notes["broken"]]] = False
    return images, kept.nonzero()[:, 0]


def fingerprint(parts: Iterable[Any]) -> str:
    """A hash of the printed form of things."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(f"{part}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def _outcomes(pictures: Pictures, resize: ResizeCrop) -> Iterator[Outcome]:
    """Each picture's bytes or error, in order. In threads: Pillow decodes without Python's lock."""

    def one(i: int) -> Outcome:
        try:
            return resize(pictures.source(i))
        except OtherSize as error:
            raise ValueError(
                f"{pictures.names[i]} has {error} pixels, but the first picture has {resize.shape[2]}×"
                f"{resize.shape[1]}: give the data a size, to which all are brought"
            ) from error
        except (OSError, MemoryError) as error:
            # Pillow's own errors have no number.
            if isinstance(error, MemoryError) or error.errno not in (None, *LEADS_NOWHERE):
                raise ValueError(
                    f"{pictures.names[i]} could not be read ({error}), which is no fault of the picture: fix that "
                    "and start again"
                ) from error
            return " ".join(str(error).split())
        except Exception as error:  # whatever a damaged file makes of a decoder
            return " ".join(str(error).split())

    n, person = len(pictures.names), sys.stderr.isatty()
    bar = tqdm(total=n, desc="decoding pictures", unit=" pictures", mininterval=0.5 if person else 10)
    some = max(1, min(AT_ONCE, BYTES_AT_ONCE // math.prod(resize.shape)))
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, n, some):
            for outcome in pool.map(one, range(first, min(first + some, n))):
                yield outcome
                bar.update()


def _named(pictures: Pictures, notes: dict[str, Any]) -> str:
    names = [pictures.names[int(i)] for i in notes["broken"]]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _check(pictures: Pictures, notes: dict[str, Any], on_error: OnError) -> None:
    bad, n = len(notes["broken"]), len(pictures.names)
    if bad and (on_error == "raise" or bad == n):
        reason = next(iter(notes["broken"].values()))
        fix = "fix or remove them" + (", or let the data's on_error be skip" if bad < n else "")
        raise ValueError(
            f"{bad} of {n} pictures cannot be read ({_named(pictures, notes)}; of the first: {reason}): {fix}"
        )


def _warn(pictures: Pictures, notes: dict[str, Any], resize: ResizeCrop) -> None:
    if bad := len(notes["broken"]):
        n = len(pictures.names)
        rank_zero_warn(f"{bad} of {n} pictures cannot be read and are left out: {_named(pictures, notes)}")
    if notes["more"]:
        rank_zero_warn(
            f"{notes['more']} of {len(pictures.names)} pictures have more than one frame or page: the first is read"
        )
    if notes["enlarged"]:
        rank_zero_warn(
            f"{notes['enlarged']} of {len(pictures.names)} pictures are smaller than {resize.shape[2]} pixels and were "
            "enlarged, which blurs them"
        )
