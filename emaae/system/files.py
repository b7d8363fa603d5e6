"""Files: untrusted ones are read with checks, ours are written whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from emaae.system.errors import BadFile, UserError

# Settings, metrics and sweep files are some kilobytes.
MAX_TEXT = 1 << 20
# Largest read from an archive at once. zipfile reads the list of members at once, after looking for
# it in the last 64 KiB, so there are some thousands at most.
MAX_READ = 1 << 17


def find_packaged(path: str | Path) -> Path:
    """The path; when nothing is there, train.py or sweeps/FILE as they come with this package."""
    path, package = Path(path), Path(__file__).parents[1]
    places = [path]
    if path == Path("train.py") or path.parent == Path("sweeps"):
        # Beside the package in a checkout; sweep files are inside it once it is installed.
        places += [package.parent / path, package / "sweep_files" / path.name]
    return next((place for place in places if place.is_file()), path)


# Folders in which file managers, archives and network disks keep what is no data.
IGNORED_FOLDERS = ("__MACOSX", "$RECYCLE.BIN", "lost+found", "@eaDir", "#recycle")


def is_data(path: str) -> bool:
    """Whether no part of a path, relative to the listed root, is hidden or of `IGNORED_FOLDERS`.

    Hidden are names with a leading dot, as `._x` of macOS and `.Trash-1000`. Every listing of
    features, audio, weights, encodings and objects goes by it.
    """
    return not any(part[:1] == "." or part in IGNORED_FOLDERS for part in path.split("/"))


def check_folder(path: str | Path, name: str, content: str) -> None:
    """Raise UserError, which calls the path `name`, unless it is a directory (of `content`)."""
    if not os.path.isdir(path):
        what = "is not a directory" if os.path.exists(path) else "does not exist (or is hidden)"
        raise UserError(f"{name} {what}: expected a directory of {content}")


@contextlib.contextmanager
def open_regular(path: str | Path, at_most: int) -> Iterator[BinaryIO]:
    """A regular file of at most `at_most` bytes, open for reading; links are followed.

    Pipes and devices, which may never end, are refused without waiting for them. Raises OSError,
    and BadFile for what is not such a file.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(f"{path} is a pipe or a device: expected a plain file")
        if status.st_size > at_most:
            raise BadFile(
                f"{path} has {status.st_size} bytes: expected at most {at_most}; use another"
            )
        yield file


@contextlib.contextmanager
def regular_file(path: str | Path, at_most: int) -> Iterator[BinaryIO]:
    """As `open_regular`; an OSError while it is opened or read becomes BadFile."""
    try:
        with open_regular(path, at_most) as file:
            yield file
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: str | Path) -> str:
    """The text of a small plain file in UTF-8. Raises OSError, UnicodeDecodeError, BadFile."""
    with open_regular(path, MAX_TEXT) as file:
        return file.read().decode("utf-8")


def lock_folder(folder: Path, waiting: str = "") -> IO[str] | None:
    """A lock on the folder that ends with this process, whatever ends it. Raises UserError.

    None where no file can be locked, as on some shared disks, or be written. waiting: what to print
    while another process has the lock; without it that is an error.
    """
    try:
        file = open(folder / ".lock", "w")  # noqa: SIM115 - open for as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                raise UserError(
                    f"another process is writing {folder}: wait until it has ended"
                ) from None
            print(waiting, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return None
    return file


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class BoundedReader:
    """A file for zipfile that raises BadFile when its list of members is longer than `MAX_READ`.

    where: names the file in the message.
    """

    def __init__(self, file: BinaryIO, where: str):
        self._file, self._where = file, where
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        """The next n bytes of the file, or all that are left. Raises BadFile beyond `MAX_READ`."""
        content = self._file.read(min(n, MAX_READ + 1) if n >= 0 else MAX_READ + 1)
        if len(content) > MAX_READ:
            raise BadFile(
                f"{self._where} lists its members in over {MAX_READ} bytes: expected some arrays"
            )
        return content


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    try:
        found = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def write_atomically(
    path: Path, write: Any, backup: Path | None = None, *, fsync: bool = True
) -> None:
    """Call write(file) on a file beside `path`, flush it to disk and rename it over `path`.

    A reader finds the old file or the new one, never half of one, whenever the power fails.
    backup: where the old file stays. fsync: wait for the disk; without it the file survives the
    end of the process, but not a power cut. Raises UserError when the disk does not take it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w+b") as file:
            write(file)
            if fsync:
                flush_to_disk(file)
        if backup is not None and path.exists():
            os.replace(path, backup)
        os.replace(beside, path)
        if fsync:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the names too
            finally:
                os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch.save raises an error of its own, whose context is that of the disk.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(write_error(path, cause)) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def flush_to_disk(file: IO[Any]) -> None:
    """Wait until what was written into an open file is on disk."""
    file.flush()
    os.fsync(file.fileno())


def write_error(path: Path, error: OSError) -> str:
    """The message for a file that cannot be written."""
    return (
        f"{path} cannot be written ({error.strerror or error}): check the folder and the free "
        "space; files written earlier are intact, and the same command (for a run, with --resume) "
        "continues from them"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises UserError."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all. Raises UserError."""
    write_bytes(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}): name another folder, or make room"
        ) from None
