"""Files: written whole or not at all, locked by one process at a time, found under the home folder, kept in the cache.

It imports Python's own modules alone.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: there are no locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # the file of a folder's lock
STALE = 24 * 3600  # seconds after which an unfinished file has no writer any more
PIECE = 2**24  # bytes that are hashed as one

_held: set[Path] = set()  # folders that this process has locked


@contextlib.contextmanager
def written(path: str | Path, sync: bool = True) -> Iterator[IO[bytes]]:
    """A stream whose bytes become the file `path` at the end of the block, whole or not at all.

    They are written to `.NAME.RANDOM.part` beside it, brought to the disk and renamed. If the block raises, the earlier
    file stays as it was and the part is removed. The folder is made if it is missing. A device or a pipe is written to
    as it is.

    Args:
        path: the file.
        sync: wait until the bytes are on the disk, so that the file survives a loss of power too.

    Raises:
        OSError: with `path` as its file name, if the bytes could not be written (no room, no permission).
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        with path.open("wb") as stream:
            yield stream
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while isinstance(cause, RuntimeError):  # behind which torch's own writer hides a full disk
            cause = cause.__context__
        if isinstance(cause, OSError) and cause.errno and cause.filename in (None, str(part)):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def written_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder to fill, whose content moves into `folder` at the end of the block; none of it if that raises.

    Raises:
        OSError: with a name below `folder`, if something could not be written.
    """
    part = Path(folder) / f".{secrets.token_hex(4)}.part"
    try:
        part.mkdir(parents=True)
        yield part
        for entry in sorted(part.iterdir()):
            entry.rename(Path(folder) / entry.name)
    except OSError as error:
        if error.errno and error.filename is not None:
            name = str(error.filename).replace(str(part), str(folder))
            raise OSError(error.errno, error.strerror, name) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file of UTF-8, whole or not at all; raises as `written` does."""
    with written(path) as stream:
        stream.write(text.encode())


def check_writable(folder: str | Path) -> None:
    """Writes a byte into a folder, or into the nearest one above it if it is missing, and removes it again.

    Raises:
        OSError: with that folder's name, if it cannot be written to, or is none.
    """
    folder = Path(folder)
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".{secrets.token_hex(4)}.part"
    try:
        probe.write_bytes(b"\0")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def check_file(path: str | Path) -> None:
    """Raises OSError, which names the place, if a file could not be written there; leaves nothing."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.parent != Path("/dev"):
        check_writable(path.parent)


def left(entry: Path) -> bool:
    """Whether a process that was killed may have left this behind: a lock's file, or something unfinished."""
    return entry.name == LOCK or (entry.name.startswith(".") and entry.name.endswith(".part"))


def sweep(folder: Path, *patterns: str, age: float = STALE) -> None:
    """Removes what `written` and `written_folder` left unfinished in a folder, and files of these names.

    Args:
        folder: whose; nothing happens if there is none.
        patterns: of further names.
        age: seconds since the last change; 0 only under the folder's lock, when there is no other writer.
    """
    for part in (part for pattern in (".*.part", *patterns) for part in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime >= age:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextlib.contextmanager
def locked(folder: str | Path, fix: str, name: str = LOCK) -> Iterator[None]:
    """Holds a folder's lock as long as the block lasts, so that no two processes write into it at once.

    The lock is the operating system's (POSIX, on `FOLDER/.lock`), so it ends with its process however that ends, and a
    file that a killed process left behind locks nothing. On a file system without locks, the block runs without one.

    Args:
        folder: made if it is missing, and then removed at the end if nothing was written into it.
        fix: what to do instead, the end of the error's sentence.
        name: of the lock's file, if the folder has several.

    Raises:
        ValueError: if another process holds it, with that process's own words.
        OSError: if the folder cannot be written to.
    """
    folder = Path(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    key = folder.resolve() / name
    if key in _held:  # the system would grant its own process the lock again, and end it at the first file's close
        raise ValueError(f"{folder} is in use by this process already: {fix}")
    file = _taken(path, folder, fix)
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        if file is not None:
            with file, contextlib.suppress(OSError):
                if _same(file, path):  # somebody may have removed it, and another process made a new one
                    path.unlink()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _taken(path: Path, folder: Path, fix: str) -> IO[bytes] | None:
    """The open file of the lock, which holds it; None if there are no locks here."""
    for _ in range(100 if fcntl is not None else 0):
        file = path.open("a+b", buffering=0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                file.seek(0)
                owner = _owner(file.read())
            raise ValueError(f"{folder} is in use by {owner}: {fix}") from error
        except OSError:  # this file system has none
            file.close()
            return None
        if not _same(file, path):  # its earlier owner removed it just now
            file.close()
            continue
        me = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        me["command"] = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        with contextlib.suppress(OSError):  # on a full disk it locks without a name
            file.truncate(0)
            file.write(json.dumps(me).encode())
        return file
    return None


def holder(folder: str | Path, name: str = LOCK) -> str | None:
    """Who holds a folder's lock; None if nobody does. It takes no lock, so that it never is in another's way."""
    path = Path(folder) / name
    if Path(folder).resolve() / name in _held:  # the system would end the lock at the close of a second file
        return "this process"
    if fcntl is None:
        return None
    # Struct flock, whose order of fields is the system's.
    form, kind = ("qqihh", 3) if sys.platform == "darwin" else ("hhqqi", 0)
    fields = [0, 0, 0, fcntl.F_WRLCK, 0] if kind else [fcntl.F_WRLCK, 0, 0, 0, 0]
    try:
        with path.open("rb") as file:
            found = struct.unpack(form, fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(form, *fields)))
            return None if found[kind] == fcntl.F_UNLCK else _owner(file.read(10_000))
    except OSError:  # there is no such file, or it may not be read
        return None


def _same(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _owner(text: bytes) -> str:
    try:
        found = json.loads(text)
        return f"process {found['pid']} on {found['host']} since {found['since']} ({found['command']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def digest(path: str | Path) -> str:
    """A hash of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


class Hashing:
    """A stream that hashes what passes through it: the hash that `digest_of_pieces` finds in the file.

    Args:
        stream: where it all goes.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.size = stream, 0
        self._piece, self._all = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        while len(view):
            some = view[: PIECE - self.size % PIECE]
            self._piece.update(some)
            self.size += len(some)
            view = view[len(some) :]
            if self.size % PIECE == 0:
                self._close()
        return self.stream.write(data)

    def _close(self) -> None:
        self._all.update(self._piece.digest())
        self._piece = hashlib.blake2b(digest_size=16)

    def digest(self) -> str:
        """The hash of all that was written; nothing is written afterwards."""
        if self.size % PIECE:
            self._close()
        return self._all.hexdigest()


def digest_of_pieces(path: str | Path) -> str:
    """A hash of a file's bytes, computed in parallel on all cores: as fast as reading a large file.

    It is the hash of the hashes of its pieces of 16 MiB.
    """
    return hashlib.blake2b(b"".join(hashes_of_pieces(path, PIECE)), digest_size=16).hexdigest()


def hashes_of_pieces(path: str | Path, size: int) -> list[bytes]:
    """The hash of each piece of a file of so many bytes, the last one shorter, computed in parallel on all cores."""
    with Path(path).open("rb") as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lock = threading.Lock()

        def one(k: int) -> bytes:
            with lock:
                file.seek(k * size)
                piece = file.read(size)
            return hashlib.blake2b(piece, digest_size=16).digest()

        return list(pool.map(one, range(-(-os.fstat(file.fileno()).st_size // size))))


def expanded(value: Any) -> Any:
    """Every text that begins with `~/` under the home folder, in a text, path, list or dict; all else as it is."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value
    if isinstance(value, Path):
        return value.expanduser()
    if isinstance(value, list):
        return [expanded(x) for x in value]
    return {key: expanded(x) for key, x in value.items()} if isinstance(value, dict) else value


def expanded_word(word: str) -> str:
    """A word of a command line with its path under the home folder, which no shell expands in `--option=~/path`."""
    option, sign, value = word.partition("=")
    return f"{option}={expanded(value)}" if sign and option.startswith("--") else expanded(word)


def cache_folder() -> Path:
    """The user's cache: `$DIFFUSION_LIGHTNING_CACHE`, else `diffusion_lightning` in the system's folder for caches."""
    given = os.environ.get("DIFFUSION_LIGHTNING_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion_lightning"
