"""Images in one file of numpy's."""

from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files import expanded
from ..images import IMAGES, Array, contents, load_array, one_image, readable, state
from .base import FORMAT, Images, Splits, arrange, cached, check_captions, check_labels, fingerprint, whole_numbers

LABELS = ("labels", "y", "arr_1")  # names of an .npz's labels, the first that it has
AT_ONCE = 1024
NPY = b"\x93NUMPY"  # how an .npy begins


class Arrays(Images):
    """Bytes (N, H, W), (N, H, W, C) or (N, C, H, W), C = 1 or 3, of an `.npz` or `.npy`, and labels (N,) of the `.npz`.

    One (H, W, 3) is one image.

    Args:
        path: the file. A set too large for memory is best an `.npy`, which is mapped; an `.npz` is read whole.
        images: the array of images in an `.npz`; None takes `arr_0`, `images` or `samples`.
        labels: the array of classes, whole numbers; None takes `labels`, `y` or `arr_1`, and y is 0 without these. With
            `captions`, only labels that are named are taken.
        captions: the array of texts (N,), of numpy's kind `U`, or `S` in UTF-8; a batch's y are the texts then, and
            with `labels` a dict, see `Images`. Every image needs one, of at most 10,000 characters.
        held_out: a fraction of the images below 1, or how many, for `val` and `test`: evenly spaced, from each class in
            proportion.
        max_memory_gib: GiB up to which an `.npy` is read into memory; a larger one is copied into the user's cache,
            split after split, and mapped. The copy's key is made of the file's resolved path, inode, times and size.
        kwargs: see `Images`.

    Raises:
        ValueError: if the file or an array is missing or of another kind or length.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | None = None,
        labels: str | None = None,
        held_out: float = 0.05,
        max_memory_gib: float = 4.0,
        captions: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.images, self.labels = Path(expanded(str(path))), images, labels
        self.caption_array = captions
        self.held_out, self.max_memory_gib = held_out, max_memory_gib

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(C, H, W) of the images."""
        channels, height, width = self._splits.images.shape[1:]
        return channels, height, width

    @cached_property
    def captions(self) -> list[str] | None:  # type: ignore[override]
        """The captions of all images, in the file's order; None without captions."""
        if self.caption_array is None:
            return None
        held = contents(self.path)
        self._name(held, self.caption_array, (), "captions")
        what, array = f"{self.caption_array} of {self.path}", held[self.caption_array]
        if array.kind.kind not in "US" or len(array.shape) != 1:
            raise ValueError(
                f"{what} holds {array.kind} of shape {list(array.shape)}, but captions are texts (N,), of numpy's kind "
                "U or S: convert it, such as by numpy.array(captions, str)"
            )
        saved = load_array(self.path, self.caption_array, array)
        try:
            texts = [text.decode("utf-8-sig") if isinstance(text, bytes) else text for text in saved.tolist()]
        except (ValueError, SystemError) as error:  # numpy's own, where a number is that of no letter
            raise ValueError(f"{what} holds bytes that are no text in UTF-8: save texts, as numpy's kind U") from error
        return check_captions(texts, lambda i: f"image {i}", str(self.path))

    def prepare_data(self) -> None:
        _ = self._splits

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> Splits:
        pixels, y = self._found()
        pixels = self._channels_first(pixels)
        order, places = arrange({"train": y}, self.held_out)
        if self.captions is not None:
            if len(self.captions) != len(pixels):
                raise ValueError(
                    f"{self.caption_array} of {self.path} has {len(self.captions)} captions, but there are "
                    f"{len(pixels)} images: give each one caption"
                )
            y, self._label_of = torch.arange(len(y)), None if self.labels is None else y
        if isinstance(pixels.base, np.memmap) and pixels.nbytes > self.max_memory_gib * 2**30:
            return Splits(self._copied(pixels, order), y[order], places)
        images = torch.from_numpy(np.ascontiguousarray(pixels[order.numpy()]))
        return Splits(images, y[order], places)

    def _copied(self, pixels: NDArray[np.uint8], order: Tensor) -> Tensor:
        def write(stream: IO[bytes]) -> dict[str, Any]:
            for some in order.split(AT_ONCE):
                stream.write(np.ascontiguousarray(pixels[some.numpy()]).tobytes())
            return {}

        key = fingerprint([FORMAT, "array", self.path.resolve(), state(self.path), pixels.shape, self.held_out])
        channels, height, width = pixels.shape[1:]
        return cached(key, (channels, height, width), write, self.max_memory_gib)[0]

    def _found(self) -> tuple[NDArray[np.uint8], Tensor]:
        """The images as they lie in the file, and their labels (N,)."""
        if not self.path.is_file():
            raise ValueError(f"{self.path} is no file: give the data's path of an .npz or .npy")
        with self.path.open("rb") as file:
            if file.read(len(NPY)) == NPY:
                return self._found_alone()
        held = contents(self.path)
        image, label = self._name(held, self.images, IMAGES, "images"), None
        if self.labels or not self.caption_array:
            label = self._name(held, self.labels, LABELS, "labels")
        if image is None:
            raise ValueError(f"{self.path} holds {', '.join(held)}, but images are sought: name them by data's images")
        readable(self.path, image, held[image])
        self._check(image, held[image].shape, held[image].kind)
        pixels = self._several(load_array(self.path, image, held[image]))
        if label is None:
            return pixels, torch.zeros(len(pixels), dtype=torch.long)
        if held[label].kind.hasobject:
            raise ValueError(
                f"{label} of {self.path} holds Python objects, but a label is the whole number of a class: save whole "
                "numbers"
            )
        y = whole_numbers(load_array(self.path, label, held[label]), f"{label} of {self.path}", len(pixels))
        check_labels(y, f"{label} of {self.path}")
        return pixels, y

    def _found_alone(self) -> tuple[NDArray[np.uint8], Tensor]:
        if self.images or self.labels or self.caption_array:
            raise ValueError(
                f"{self.path} holds one array, but images, labels or captions are named: give an .npz of them"
            )
        try:
            pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy and mmap each have their own
            raise ValueError(f"{self.path} is cut short, damaged or no .npy of numbers: make it again") from error
        self._check("the array", pixels.shape, pixels.dtype)
        pixels = self._several(pixels)
        return pixels, torch.zeros(len(pixels), dtype=torch.long)

    def _name(self, held: dict[str, Array], given: str | None, usual: tuple[str, ...], what: str) -> str | None:
        if given is not None and given not in held:
            raise ValueError(f"{self.path} holds {', '.join(held)}, but no {given}: correct data's {what}")
        return given or next((name for name in usual if name in held), None)

    def _check(self, name: str, shape: tuple[int, ...], kind: Any) -> None:
        if kind != np.uint8:
            raise ValueError(
                f"{name} of {self.path} holds {kind}, but images are bytes 0 … 255 here: convert it to uint8"
            )
        channels = len(shape) == 3 or (len(shape) == 4 and (shape[3] in (1, 3) or shape[1] in (1, 3)))
        if not channels or 0 in shape:
            raise ValueError(
                f"{name} of {self.path} has shape {list(shape)}, but images are (N, H, W), (N, H, W, C) or (N, C, H, "
                "W) of 1 or 3 channels: reshape it"
            )

    @staticmethod
    def _several(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pixels[None] if one_image(pixels.shape) else pixels

    @staticmethod
    def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if pixels.ndim == 3:
            return pixels[:, None]
        return pixels.transpose(0, 3, 1, 2) if pixels.shape[3] in (1, 3) else pixels[:]
