"""Weights and training states on disk, read with checks."""

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
from emaae.system import files
from emaae.system.errors import BadFile, UserError, reason

# Version of the format of last.pt, increased when older programs cannot read new files.
FORMAT = 3
# The state from which a run is resumed, and the previous one, in case the first is broken.
STATE_FILES = ("last.pt", "last.previous.pt")

# Largest file that is read as weights, in sizes of the model: float64 weights take 2, a last.pt,
# which is refused by name, 4.
MAX_WEIGHTS_RATIO = 8
# Most bytes of the pickle in a checkpoint. It lists the tensors, in 25 KB for the largest model; a
# pickle nested 250,000 deep crashes the interpreter.
MAX_PICKLE = 60_000


def save(path: Path, content: Mapping[str, Any], backup: Path | None = None) -> None:
    """Write tensors and plain values, whole or not at all; backup: see `write_atomically`."""
    files.write_atomically(path, lambda file: torch.save(dict(content), file), backup)


def save_last(folder: Path, state: Mapping[str, Any]) -> None:
    """Write last.pt into a run's folder; the one before becomes last.previous.pt."""
    last, previous = (folder / name for name in STATE_FILES)
    save(last, {"format": FORMAT, **state}, backup=previous)


def has_last(folder: Path) -> bool:
    """Whether a run's folder has a state from which the run can be resumed."""
    return any((folder / name).is_file() for name in STATE_FILES)


def load_last(folder: Path) -> dict[str, Any]:
    """The state in last.pt or, if that is lost or broken, last.previous.pt. Raises UserError."""
    path, previous = (folder / name for name in STATE_FILES)
    try:
        state = load(path)
    except UserError as error:
        if not previous.exists():
            raise UserError(f"{error}; or remove {folder} to start again") from None
        if path.exists():
            warnings.warn(f"{error}; continuing from {previous.name}", stacklevel=2)
        path, state = previous, load(previous)
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {state.get('format')}, this program reads {FORMAT}: resume with "
            "the version that wrote it, or start another run"
        )
    return state


def load(path: str | Path, at_most: int = 1 << 40) -> dict[str, Any]:
    """The content that `save` wrote, in at most `at_most` bytes; runs no code. Raises UserError."""
    with files.regular_file(path, at_most) as file:
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
            raise UserError(
                f"{path} is not a readable checkpoint ({reason(error)}): copy it again"
            ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}: expected a state_dict")
    return content


# First bytes of files that are mistaken for checkpoints, and what these files are.
FOREIGN_FORMATS = {
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` gets the file itself",
    b"\x80": "a pickle, perhaps a checkpoint of PyTorch before 1.6: load it where it was made, and "
    "save its state_dict again with torch.save",
    b"\x89HDF": "an HDF5 file, as Keras writes its models: expected a checkpoint of PyTorch",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"<": "a page of HTML or XML, such as a download that failed: get the file itself",
}


def _check_kind(file: BinaryIO, path: str | Path) -> None:
    """Raise BadFile, with the kind of file, for a file of another kind."""
    head = file.read(32)
    file.seek(0)
    if head[8:9] == b"{":  # safetensors: JSON after the 8 bytes of its length
        raise BadFile(f"{path} is a file of safetensors: expected one that torch.save wrote")
    if not head:
        raise BadFile(f"{path} is empty: copy it again")
    for start, kind in FOREIGN_FORMATS.items():
        if head.startswith(start):
            raise BadFile(f"{path} is {kind}")


def _check_archive(file: BinaryIO, path: str | Path) -> None:
    """Raise BadFile for a corrupt archive, or one that would need more memory than its own size.

    torch.load verifies no checksums and allocates whatever size the file claims.
    """
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(files.BoundedReader(file, str(path))) as archive:
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
                while content.read(files.MAX_READ):
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
    broken = "the model is broken, use another"
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
                f"{path}: {name} has dtype {value.dtype}, expected {tensor.dtype}: {broken}"
            )
        bad_sd = name == "sd" and (value <= 0).any()
        bad_variance = name.endswith("running_var") and (value < 0).any()
        if bad_sd or bad_variance or not torch.isfinite(value).all():
            raise UserError(
                f"{path}: {name} holds numbers that are not finite, a standard deviation of 0, or "
                f"a negative variance: {broken}"
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
    # model_config.json may claim any size: memory is allocated once the weights match it.
    with torch.device("meta"):
        model = build_model(**config.architecture)
    load_weights(model, path)
    return model.eval()


def unwrap_state_dict(found: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict in a trainer's checkpoint, without the prefixes of wrapper modules.

    It is the checkpoint itself or its entry `state_dict` or `model_state_dict`; the prefixes are
    `module.` (DataParallel) and `_orig_mod.` (torch.compile).
    """
    for key in ("state_dict", "model_state_dict"):
        if isinstance(found.get(key), dict):
            found = found[key]
    for prefix in ("module.", "_orig_mod.") * 2:  # in either order
        if found and all(isinstance(name, str) and name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return dict(found)


def export_original(model: CNNAutoEncoder, out: Path, settings: Mapping[str, Any]) -> Path:
    """Write a model as files of the original project into `out`; returns the path of the weights.

    settings: see `emaae.runs.original.SETTINGS`. Raises UserError, also for a model that the
    original class cannot represent.
    """
    state, config = original.state_dict(model), original.model_config(model, settings)
    files.make_folder(out)
    files.write_json(out / "model_config.json", config)
    weights = out / f"{model.get_type()}.pth"
    save(weights, state)
    return weights
