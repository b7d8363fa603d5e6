"""Reading untrusted files with checks, and writing files whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from emaae.system.errors import BadFile, UserError

# Largest text file in bytes. The largest ones are tables of onsets and manifests of regressors: two
# megabytes for 30,000 utterances.
MAX_TEXT = 1 << 24
# Largest single read from an archive in bytes. zipfile searches the last 64 KiB for the list of
# members and reads the list at once, so this allows a few thousand members.
MAX_READ = 1 << 17


def find_packaged(path: str | Path) -> Path:
    """The path; if no file exists there, that of this package for train.py or sweeps/FILE."""
    path, package = Path(path), Path(__file__).parents[1]
    candidates = [path]
    if path == Path("train.py") or path.parent == Path("sweeps"):
        # Beside the package in a checkout; the installed package contains the sweep files.
        candidates += [package.parent / path, package / "sweep_files" / path.name]
    return next((candidate for candidate in candidates if candidate.is_file()), path)


# Folders in which file managers, archives and network disks keep files of their own.
IGNORED_FOLDERS = ("__MACOSX", "$RECYCLE.BIN", "lost+found", "@eaDir", "#recycle")


def is_data(path: str) -> bool:
    """Whether a path, relative to the listed root, is data: not hidden, not in `IGNORED_FOLDERS`.

    Hidden names have a leading dot, such as `._x` of macOS and `.Trash-1000`. All listings of
    features, audio, weights, encodings and objects use this function.
    """
    return not any(part[:1] == "." or part in IGNORED_FOLDERS for part in path.split("/"))


def check_folder(path: str | Path, name: str, content: str) -> None:
    """Raise UserError unless the path is a directory; name, content: words for the message."""
    if not os.path.isdir(path):
        what = "is not a directory" if os.path.exists(path) else "does not exist (or is hidden)"
        raise UserError(f"{name} {what}: expected a directory of {content}")


@contextlib.contextmanager
def open_regular(path: str | Path, at_most: int) -> Iterator[BinaryIO]:
    """A regular file of at most `at_most` bytes, open for reading; links are followed.

    Raises OSError, and BadFile for larger files, pipes and devices; does not wait for a pipe.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(f"{path} is a pipe or a device: expected a plain file")
        if status.st_size > at_most:
            raise BadFile(
                f"{path} has {status.st_size} bytes: expected at most {at_most}; use another file"
            )
        yield file


@contextlib.contextmanager
def regular_file(path: str | Path, at_most: int) -> Iterator[BinaryIO]:
    """As `open_regular`, but an OSError on opening or reading becomes BadFile."""
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
    """An open file that locks the folder until it is closed or this process ends in any way.

    None if the lock file cannot be written, or not be locked as on some shared disks. waiting: text
    to print before waiting for another process's lock; without it raises UserError instead.
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
    """The sha256 of a file's content, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class BoundedReader:
    """A file for zipfile; raises BadFile for a list of members of more than `MAX_READ` bytes.

    where: the name of the file in the message.
    """

    def __init__(self, file: BinaryIO, where: str):
        self._file, self._where = file, where
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        """The next n bytes, or all that are left. Raises BadFile for more than `MAX_READ`."""
        content = self._file.read(min(n, MAX_READ + 1) if n >= 0 else MAX_READ + 1)
        if len(content) > MAX_READ:
            raise BadFile(
                f"{self._where} has a list of members of over {MAX_READ} bytes: expected few arrays"
            )
        return content


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def write_atomically(
    path: Path, write: Any, backup: Path | None = None, *, fsync: bool = True
) -> None:
    """Write a file with write(file): into a temporary file, which is then renamed to `path`.

    A reader finds the old file or the new one, never a part, even after a power cut. backup: a new
    path for the old file. fsync: wait for the disk; without it the file survives the end of the
    process, but perhaps not a power cut. Raises UserError if the file cannot be written.
    """
    # A name of its own: processes on several machines may have one number and share the disk.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "w+b") as file:
            write(file)
            if fsync:
                flush_to_disk(file)
        if backup is not None and path.exists():
            os.replace(path, backup)
        os.replace(temporary, path)
        if fsync:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # for the renaming
            finally:
                os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError, whose context is the OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(write_error(path, cause)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def flush_to_disk(file: IO[Any]) -> None:
    """Wait until everything written to an open file is on disk."""
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
    """Make a folder and its parents, if missing. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}): name another folder, or free space"
        ) from None
