"""Weights and training states on disk: written whole or not at all, read with checks."""

import contextlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from emaae import command_line
from emaae.models import CNNAutoEncoder, build_model
from emaae.runs import original
from emaae.system.errors import BadFile, UserError
from emaae.system.files import MAX_READ, BoundedReader, open_regular

# The format of last.pt; raised when an older program could no longer read it.
FORMAT = 3
# The state that an interrupted run goes on from, and its predecessor in case it is broken.
STATE_FILES = ("last.pt", "last.previous.pt")
# The entries that it must have, and their types.
STATE_TYPES = {"format": int, "epoch": int, "batch": int, "stopped": bool, "model": dict}
STATE_TYPES |= {"optimizer": list, "selection": dict, "phase": dict, "schedule": dict}

# A file of weights may hold them as float64, or all that last.pt has.
MAX_WEIGHTS_RATIO = 8
# The pickle in a checkpoint says where the tensors are, in 25 KB for the largest model. Nested
# 250,000 deep, one crashes the interpreter.
MAX_PICKLE = 60_000


def write_atomically(
    path: Path, write: Any, keep: Path | None = None, *, flushed: bool = True
) -> None:
    """Call write(file) on a file beside `path`, flush it to disk and rename it over `path`.

    A reader finds the old file or the new one, never half of one, whenever the power fails.
    keep: where the old file stays. flushed: wait for the disk; without it only a process may fail,
    not the power. Raises UserError when the disk does not take it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w+b") as file:
            write(file)
            file.flush()
            if flushed:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(beside, path)
        if flushed:
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


def write_error(path: Path, error: OSError) -> str:
    """The message about a disk that is full or gone."""
    return (
        f"{path} cannot be written ({error.strerror or error}): make room; what was written before "
        "is intact, and the same command (--resume, of a run) goes on from it"
    )


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}): make room, or name another folder"
        ) from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


def save(path: Path, content: Mapping[str, Any], keep: Path | None = None) -> None:
    """Write tensors and plain values, whole or not at all; `keep`, see `write_atomically`."""
    write_atomically(path, lambda file: torch.save(dict(content), file), keep)


def save_last(folder: Path, state: Mapping[str, Any]) -> None:
    """Write last.pt into a run's folder, keeping the one before."""
    last, previous = (folder / name for name in STATE_FILES)
    save(last, {"format": FORMAT, **state}, keep=previous)


def load_last(folder: Path) -> dict[str, Any]:
    """The state in last.pt or, with a warning, the one before if that is broken. UserError."""
    path, previous = (folder / name for name in STATE_FILES)
    try:
        state = load(path)
    except UserError as error:
        if not previous.exists():
            raise
        if path.exists():
            warnings.warn(f"{error}; going on from {previous.name}", stacklevel=2)
        path, state = previous, load(previous)
    form = state.get("format")
    if isinstance(form, int) and form != FORMAT:
        raise UserError(
            f"{path} has format {form}, this program reads {FORMAT}: go on with the version that "
            "wrote it, or begin another run"
        )
    if any(not isinstance(state.get(key), kind) for key, kind in STATE_TYPES.items()):
        raise UserError(f"{path} is not the state of a training: remove the run")
    return state


def load(path: str | Path, at_most: int = 1 << 40) -> dict[str, Any]:
    """Read what `save` wrote, with `weights_only=True`, of at most so many bytes. UserError."""
    try:
        file = open_regular(path, at_most)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    with file:
        try:
            _check_kind(file, path)
            _check_archive(file, path)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except UserError:
            raise
        except pickle.UnpicklingError:
            raise UserError(
                f"{path} is not a checkpoint of plain tensors (or holds code, which is never run): "
                "expected a state_dict saved with torch.save"
            ) from None
        except Exception as error:  # torch.load fails in many ways on a broken archive
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} is not a readable checkpoint ({reason}): copy it again"
            ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}: expected a state_dict")
    return content


# First bytes of files that are mistaken for checkpoints, and what these files are.
FOREIGN_FORMATS = {
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` gets the file itself",
    b"\x80": "a pickle, perhaps a checkpoint of PyTorch before 1.6: load it where it was made, and "
    "save its state_dict again by torch.save",
    b"\x89HDF": "an HDF5 file, as Keras writes its models: expected a checkpoint of PyTorch",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"<": "a page of HTML or XML, such as a download that failed: get the file itself",
}


def _check_kind(file: BinaryIO, path: str | Path) -> None:
    """Raise BadFile for a file of another kind, and say of which."""
    head = file.read(32)
    file.seek(0)
    if head[8:9] == b"{":  # after the length of its list of tensors
        raise BadFile(f"{path} is a file of safetensors: expected one that torch.save wrote")
    if not head:
        raise BadFile(f"{path} is empty: copy it again")
    for start, kind in FOREIGN_FORMATS.items():
        if head.startswith(start):
            raise BadFile(f"{path} is {kind}")


def _check_archive(file: BinaryIO, path: str | Path) -> None:
    """Raise BadFile for a flipped bit, and for what would take more memory than the file's size.

    torch.load compares no sums, and allocates whatever size a file claims.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(BoundedReader(file, str(path))) as archive:
        members = archive.infolist()
        compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if compressed or size < sum(member.file_size for member in members):
            raise BadFile(
                f"{path} is not a checkpoint as torch.save writes it: expected an archive whose "
                "members are not compressed and do not overlap"
            )
        if any(m.filename.endswith(".pkl") and m.file_size > MAX_PICKLE for m in members):
            raise BadFile(
                f"{path} is not a checkpoint of a model: its list of tensors has more than "
                f"{MAX_PICKLE} bytes"
            )
        for member in members:
            with archive.open(member) as content:
                while content.read(MAX_READ):
                    pass
    file.seek(0)


def load_weights(model: CNNAutoEncoder, path: str | Path) -> None:
    """Put the state_dict of a .pth into a model of the same architecture. Raises UserError.

    The names of the original project are translated, see `emaae.runs.original`.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory: name the weights in it, such as {path}/best.pth")
    expected = model.state_dict()
    n_bytes = sum(tensor.nbytes for tensor in expected.values())
    found = load(path, at_most=MAX_WEIGHTS_RATIO * n_bytes + 2**20)
    if "format" in found and "optimizer" in found:
        raise UserError(
            f"{path} holds the whole state of a run, not weights alone: use the best.pth beside it"
        )
    found = original.from_original_names(unwrap_state_dict(found), model.input_dim)
    kind = f"{model.get_type()} with norm {model.norm}"
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(
                f"{path} has no entry {name}: it holds another architecture than {kind}; give its "
                "--model_config"
            )
        value = found[name]
        shape = getattr(value, "shape", None)
        if shape != tensor.shape or value.layout != torch.strided or value.is_meta:
            raise UserError(
                f"{path}: {name} has shape {tuple(shape or ())}, expected {tuple(tensor.shape)} "
                f"for {kind}; give its --model_config"
            )
        if value.dtype.is_floating_point != tensor.dtype.is_floating_point:
            raise UserError(
                f"{path}: {name} has dtype {value.dtype}, expected {tensor.dtype}: the model is "
                "broken, use another"
            )
        bad_sd = name == "sd" and (value <= 0).any()
        bad_variance = name.endswith("running_var") and (value < 0).any()
        if bad_sd or bad_variance or not torch.isfinite(value).all():
            raise UserError(
                f"{path}: {name} holds numbers that are not finite, a standard deviation of 0, or "
                "a negative variance: the model is broken, use another"
            )
    unknown = sorted(set(found) - set(expected), key=str)
    if unknown:
        raise UserError(
            f"{path} has the entry {unknown[0]}, which {kind} does not know; give its "
            "--model_config"
        )
    if next(model.parameters()).is_meta:
        model.to_empty(device="cpu")
    model.load_state_dict(found)


def load_model_file(path: Path) -> CNNAutoEncoder:
    """The model in a .pth beside its model_config.json, in evaluation mode. Raises UserError."""
    config = command_line.config_from({"model_config": str(path.parent / "model_config.json")})
    # A model_config.json may say any size: memory is taken when the weights have it too.
    with torch.device("meta"):
        model = build_model(**config.architecture)
    load_weights(model, path)
    return model.eval()


def unwrap_state_dict(found: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict inside of what a trainer has saved.

    It may be an entry `state_dict` or `model_state_dict` among others, and its names may begin with
    `module.` (DataParallel) or `_orig_mod.` (torch.compile).
    """
    for key in ("state_dict", "model_state_dict"):
        if isinstance(found.get(key), dict):
            found = found[key]
    for prefix in ("module.", "_orig_mod.") * 2:  # either may be outside
        if found and all(isinstance(name, str) and name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return dict(found)


def export_original(model: CNNAutoEncoder, out: Path, settings: Mapping[str, Any]) -> Path:
    """Write the files that the original class reads into the folder `out`; returns the weights'.

    settings: of the run, see `emaae.runs.original.SETTINGS`. Raises UserError for what that class
    cannot say, or the disk does not take.
    """
    state, config = original.state_dict(model), original.model_config(model, settings)
    make_folder(out)
    write_json(out / "model_config.json", config)
    weights = out / f"{model.get_type()}.pth"
    save(weights, state)
    return weights
