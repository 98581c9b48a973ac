"""Captions beside a folder's pictures, or in lists: what is read, and what is wrong with a file or a line."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lightning.data import ImageFolder
from diffusion_lightning.data.base import caption_files, read_captions

pytestmark = pytest.mark.usefixtures("own_cache")

N = 4  # pictures
NAMES = [f"{i}.png" for i in range(N)]


def folder(top: Path, *names: str) -> Path:
    """Pictures of these names; the grey is the name's place."""
    for i, name in enumerate(names or NAMES):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), 50 * i, np.uint8)).save(top / name)
    return top


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def line(name: Any, text: Any = "a text") -> dict[str, Any]:
    return {"file_name": name, "text": text}


LINES = [line(name, f"of {name}") for name in NAMES]
TABLE = "file_name,text\n" + "".join(f"{name},of {name}\n" for name in NAMES)
GOOD = {"metadata.jsonl": jsonl(*LINES), "metadata.csv": TABLE}
every_list = pytest.mark.parametrize(("name", "text"), GOOD.items(), ids=GOOD.keys())


def captions(top: Path, kind: str, column: str = "text") -> list[str]:
    """Read without decoding a picture."""
    found = ImageFolder(top, captions=kind, caption_column=column).captions
    assert found is not None
    return found


def refused(top: Path, kind: str, says: str, **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        ImageFolder(top, captions=kind, **kwargs).prepare_data()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


# What is read.


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@every_list
def test_a_list_of_any_system_is_read(name: str, text: str, end: str, mark: bytes, tmp_path: Path) -> None:
    (folder(tmp_path) / name).write_bytes(mark + text.replace("\n", end).encode())
    assert captions(tmp_path, name) == [f"of {name}" for name in NAMES]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"], ids=["no end", "LF", "CRLF"])
def test_a_text_of_any_system_is_read(end: bytes, mark: bytes, tmp_path: Path) -> None:
    for name in NAMES:
        (folder(tmp_path) / name).with_suffix(".txt").write_bytes(mark + b"  of " + name.encode() + end)
    assert captions(tmp_path, "txt") == [f"of {name}" for name in NAMES]


def test_lists_keep_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    texts = ['a, "b" and c', "two\nlines", "“ü” 🙂 \u2028 end", "'"]
    folder(tmp_path)
    quoted = [text.replace('"', '""').replace("\n", "\r\n") for text in texts]
    rows = "".join(f'{i}.png,{i},"{text}"\r\n' for i, text in enumerate(quoted))
    (tmp_path / "metadata.csv").write_bytes(f"\r\nfile_name, id , text\r\n\r\n{rows}".encode())
    assert captions(tmp_path, "metadata.csv") == texts
    for escape in (True, False):
        lines = [json.dumps({"x": [1], **line(n, t)}, ensure_ascii=escape) for n, t in zip(NAMES, texts, strict=True)]
        (tmp_path / "metadata.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
        assert captions(tmp_path, "metadata.jsonl") == texts


def test_another_column_and_another_name(tmp_path: Path) -> None:
    rows = [{"file_name": name, "text": "no", "prompt": [f"of {name}", "another"]} for name in NAMES]
    (folder(tmp_path) / "captions.jsonl").write_text(jsonl(*rows), encoding="utf-8")
    assert captions(tmp_path, "captions.jsonl", "prompt") == [f"of {name}" for name in NAMES]


@every_list
def test_names_are_relative_to_the_lists_folder(name: str, text: str, tmp_path: Path) -> None:
    """Of several lists the nearest one above a picture holds, and one that is written otherwise is the same path."""
    folder(tmp_path, "a/0.png", "a/b/1.png", "c/2.png", "caf\u00e9.png")
    rows = {
        tmp_path: [line("c/2.png", "top c"), line("a/0.png", "not this"), line("./cafe\u0301.png", "top é")],
        tmp_path / "a": [line("0.png", "a 0"), line("./b//1.png", "a b 1")],
    }
    for place, lines in rows.items():
        table = "text,file_name\n" + "".join(f"{row['text']},{row['file_name']}\n" for row in lines)
        (place / name).write_text(jsonl(*lines) if name.endswith("l") else table, encoding="utf-8")
    with pytest.warns(UserWarning, match="have no picture are not used: 1, the first of them .*a/0.png"):
        assert captions(tmp_path, name) == ["a 0", "a b 1", "top c", "top é"]


SPLIT = ("train/x/0.png", "train/y/1.png", "val/x/2.png", "test/y/3.png")


@pytest.mark.parametrize("one", [True, False], ids=["one list at the top", "one in each split"])
@every_list
def test_a_folder_with_splits(name: str, text: str, one: bool, tmp_path: Path) -> None:
    folder(tmp_path, *SPLIT)
    for split in ("train", "val", "test"):
        mine = [path for path in SPLIT if one or path.startswith(split)]
        names = [path if one else path.removeprefix(f"{split}/") for path in mine]
        lines = [line(short, f"of {path}") for short, path in zip(names, mine, strict=True)]
        table = "file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in lines)
        place = tmp_path if one else tmp_path / split
        (place / name).write_text(jsonl(*lines) if name.endswith("l") else table, encoding="utf-8")
    data = ImageFolder(tmp_path, captions=name, classes=True, batch_size=1)
    expected = {"train": SPLIT[:2], "val": SPLIT[2:3], "test": SPLIT[3:]}
    for split, paths in expected.items():
        assert data.captions_of(split) == [f"of {path}" for path in paths]
        data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    _, y = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert y["text"] == ["of test/y/3.png"]
    assert y["label"].tolist() == [1]


# What is warned of.


def test_a_text_beside_no_picture_is_counted(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for name in [*NAMES, "8.png", "notes.md"]:
        (folder(tmp_path) / name).with_suffix(".txt").write_text("a text")
    (tmp_path / "._0.txt").write_bytes(b"\xff")
    data = ImageFolder(tmp_path, captions="txt")
    for _ in range(2):
        assert data.captions == ["a text"] * N
    said = [str(warning.message) for warning in recwarn if "not used" in str(warning.message)]
    assert len(said) == 1
    assert said[0] == f"captions that have no picture are not used: 2, the first of them {tmp_path / '8.txt'}"


@every_list
def test_a_line_of_no_picture_is_counted(
    name: str, text: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    more = {"metadata.jsonl": jsonl(line("8.png"), line("9.png", "")), "metadata.csv": "8.png,a\n9.png,\n"}
    (folder(tmp_path) / name).write_text(text + more[name])
    assert len(captions(tmp_path, name)) == N
    said = [str(warning.message) for warning in recwarn if "not used" in str(warning.message)]
    assert len(said) == 1
    assert said[0] == f"captions that have no picture are not used: 2, the first of them {tmp_path / '8.png'}"


# What is wrong.


def test_a_picture_without_a_text_beside_it_is_named_and_they_are_counted(tmp_path: Path) -> None:
    folder(tmp_path)
    refused(tmp_path, "txt", r"4 of 4 images of .* have no caption, the first of them .*/0\.png: write a text for each")
    (tmp_path / "0.txt").write_text("a")
    (tmp_path / "2.txt").write_text("a")
    refused(tmp_path, "txt", r"2 of 4 images of .* have no caption, the first of them .*/1\.png")
    refused(tmp_path, "txt", r"2 of 4 images of .* have no caption", on_error="skip")  # which is about pictures


@every_list
def test_a_picture_that_no_list_names_is_named_and_they_are_counted(name: str, text: str, tmp_path: Path) -> None:
    folder(tmp_path)
    refused(tmp_path, name, f"has no {name}, but captions are sought there")
    (tmp_path / name).write_text("".join(text.splitlines(keepends=True)[:-2]))
    refused(tmp_path, name, r"2 of 4 images of .* have no caption, the first of them .*/2\.png")
    folder(tmp_path / "split", *SPLIT)
    (tmp_path / "split/train" / name).write_text(text.replace("0.png", "x/0.png").replace("1.png", "y/1.png"))
    refused(tmp_path / "split", name, r"2 of 4 images of .* have no caption, the first of them .*/val/x/2\.png")


def replaced(i: int, new: Any) -> str:
    return jsonl(*LINES[:i], new, *LINES[i + 1 :])


def quoted(new: str) -> str:
    return TABLE.replace("2.png,of 2.png", new)


OUT = "leads out of the list's folder: give a path within it"
BAD: dict[str, tuple[str, str | bytes, str]] = {
    "no object": ("jsonl", replaced(2, ["2.png", "a"]), r"line 3 of .*metadata.jsonl is no JSON object: write"),
    "no JSON": ("jsonl", GOOD["metadata.jsonl"].replace("}", ""), "line 1 of .* is no JSON object"),
    "one whole JSON": ("jsonl", json.dumps(LINES, indent=1), "line 1 of .* is no JSON object"),
    "deep": ("jsonl", "[" * 100_000, "line 1 of .* is no JSON object"),
    "a long number": ("jsonl", "1" * 10_000, "line 1 of .* is no JSON object"),
    "a word": ("jsonl", replaced(1, "a text"), "line 2 of .* is no JSON object"),
    "no file_name": ("jsonl", replaced(2, {"image": "2.png", "text": "a"}), "line 3 .* image, text, but no file"),
    "no text": ("jsonl", replaced(0, {"file_name": "2.png"}), "line 1 .* columns file_name, but no text: add"),
    "nothing": ("jsonl", replaced(0, {}), "line 1 of .* has nothing, but no file_name"),
    "many columns": ("jsonl", replaced(0, {f"c{i}" * 99: i for i in range(99)}), "but no file_name"),
    "a number as name": ("jsonl", replaced(3, line(3)), "line 4 of .* has the file_name 3, but it is the name of a pi"),
    "an empty name": ("jsonl", replaced(3, line("")), "line 4 of .* has the file_name , but it is the name"),
    "a number as text": ("jsonl", replaced(3, line("3.png", 7)), r"caption of .*/3\.png is int, but a caption is text"),
    "an object as text": ("jsonl", replaced(3, line("3.png", {"en": "a"})), r"caption of .*/3\.png is dict, but a c"),
    "null as text": ("jsonl", replaced(3, line("3.png", None)), r"1 of 4 images .* no caption, .* /.*/3\.png"),
    "an empty list": ("jsonl", replaced(3, line("3.png", [])), "1 of 4 images .* have no caption"),
    "an empty text": ("jsonl", replaced(1, line("1.png", " ")), r"1 of 4 images .* an empty caption, .*/1\.png"),
    "half a pair": ("jsonl", replaced(1, line("1.png", "\ud83d")), r"caption of .*/1\.png holds a character"),
    "twice": ("jsonl", jsonl(*LINES, line("./2.png")), r"lines 3 and 5 of .*metadata\.jsonl both name 2\.png: remove"),
    "above": ("jsonl", replaced(0, line("../0.png")), rf"line 1 of .* has the file_name \.\./0\.png, which {OUT}"),
    "above within": ("jsonl", replaced(0, line("a/../../0.png")), OUT),
    "absolute": ("jsonl", replaced(0, line("/etc/passwd")), rf"file_name /etc/passwd, which {OUT}"),
    "a backslash": ("jsonl", replaced(0, line("a\\0.png")), r"file_name a\\0\.png, with a backslash: write / between"),
    "another encoding": ("jsonl", jsonl(*LINES).encode("utf-16"), "is not UTF-8 from byte 0 on: save it"),
    "an empty list file": ("jsonl", "", "4 of 4 images of .* have no caption"),
    "no column": ("csv", TABLE.replace("text", "caption"), r"line 2 of .* has the columns file_name, caption, but"),
    "semicolons": ("csv", TABLE.replace(",", ";"), "has the columns file_name;text, but no file_name"),
    "no header": ("csv", TABLE.partition("\n")[2], r"has the columns 0\.png, of 0\.png, but no file_name"),
    "a bare comma": ("csv", quoted("2.png,red, round"), "line 4 of .* has 3 fields, but there are 2 columns: put a c"),
    "a field short": ("csv", quoted("2.png"), "line 4 of .* has 1 fields, but there are 2 columns"),
    "an open quote": ("csv", quoted('2.png,"red'), "line 5 of .* is no line of a CSV file .unexpected end of data"),
    "a quote within": ("csv", quoted('2.png,"a "red" one"'), "line 4 of .* is no line of a CSV file .* double the"),
    "a field too long": ("csv", quoted("2.png," + "a" * 200_000), "line 4 of .* is no line of a CSV file .field lar"),
    "a column twice": ("csv", TABLE.replace("file_name,text", "text,text"), "has the columns text, text, two of one n"),
    "an empty field": ("csv", quoted("2.png,"), r"1 of 4 images .* have an empty caption, .*/2\.png"),
    "a long text": ("csv", quoted("2.png," + "a" * 10_001), r"caption of .*/2\.png has 10,001 characters"),
    "twice in a CSV": ("csv", TABLE + "0.png,a\n", r"lines 2 and 6 of .* both name 0\.png"),
    "above in a CSV": ("csv", quoted("../2.png,a"), OUT),
    "Latin 1": ("csv", quoted("2.png,é").encode("latin-1"), r"metadata\.csv is not UTF-8 from byte \d\d on"),
    "an empty CSV": ("csv", "", "4 of 4 images of .* have no caption"),
    "a byte 0": ("csv", quoted("2.png,a\0b"), "holds a character that no text has|is no line of a CSV"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "content", "says"), BAD.values(), ids=BAD.keys())
def test_a_list_that_is_wrong_is_refused_in_a_sentence_before_a_picture_is_decoded(
    kind: str, content: str | bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder(tmp_path) / f"metadata.{kind}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(Image, "open", None)
    refused(tmp_path, file.name, says, size=2)


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"1 of 4 images .* have an empty caption, the first of them .*/1\.png"),
    "blank": (b"\xef\xbb\xbf \r\n\t", "have an empty caption"),
    "Latin 1": ("é".encode("latin-1"), r"1\.txt is not UTF-8 from byte 0 on: save it in that encoding"),
    "UTF-16": ("a".encode("utf-16"), r"1\.txt is not UTF-8"),
    "UTF-16 without a mark": ("ab".encode("utf-16-le"), r"caption of .*/1\.png holds a character that no text has"),
    "long": (b"a" * 10_001, r"caption of .*/1\.png has 10,001 characters, but a caption has at most 10,000: shorten"),
    "a book": (b"a" * (2**17 + 1), r"1\.txt has more than 131,072 bytes, which is too much"),
}


@pytest.mark.parametrize(("content", "says"), TEXTS.values(), ids=TEXTS.keys())
def test_a_text_that_is_wrong_is_refused_in_a_sentence(content: bytes, says: str, tmp_path: Path) -> None:
    for name in folder(tmp_path).glob("*.png"):
        name.with_suffix(".txt").write_bytes(b"a")
    (tmp_path / "1.txt").write_bytes(content)
    refused(tmp_path, "txt", says)


@pytest.mark.parametrize("kind", ["txt", "metadata.jsonl", "metadata.csv"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    place = folder(tmp_path) / ("0.txt" if kind == "txt" else kind)
    os.mkfifo(place)
    refused(tmp_path, kind, f"{place.name} cannot be read .it is a pipe, not a file.: give access to a file of text")
    place.unlink()
    place.mkdir()
    refused(tmp_path, kind, f"{place.name} cannot be read .it is a folder, not a file.")
    place.rmdir()
    place.symlink_to("/dev/zero")
    refused(tmp_path, kind, f"{place.name} cannot be read .it is a device, not a file.")
    place.unlink()
    place.symlink_to(tmp_path / "nowhere")
    refused(tmp_path, kind, f"{place.name} cannot be read .No such file or directory.")


@every_list
def test_a_list_that_is_too_large_is_not_read(name: str, text: str, tmp_path: Path) -> None:
    (folder(tmp_path) / name).write_text(text)
    os.truncate(tmp_path / name, caption_files.LIST_BYTES + 1)  # a hole: the disk holds none of it
    refused(tmp_path, name, "has more than 1,073,741,824 bytes, which is too much for captions")


@pytest.mark.parametrize(
    "kind", ["json", "text", "captions.txt", "../metadata.jsonl", "a/metadata.csv", "a\\b.csv", ""]
)
def test_another_kind_of_captions_is_refused_when_the_data_are_made(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is no kind of captions: give txt, for a text file beside each picture"):
        ImageFolder(tmp_path, captions=kind)


def test_two_pictures_of_one_stem_share_a_text(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "a.webp", "b.c.png")
    for name in ("a", "b.c"):
        (tmp_path / f"{name}.txt").write_text(name)
    files = [tmp_path / name for name in ("b.c.png", "a.webp", "a.png")]
    assert read_captions(files, tmp_path, "txt", "text") == ["b.c", "a", "a"]
