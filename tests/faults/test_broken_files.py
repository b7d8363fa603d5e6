"""Files that are cut off or have a flipped bit are refused by name, or read unchanged."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import speech
from hostile import names

from emaae.data.features import read_features
from emaae.models import CNNAutoEncoder
from emaae.runs import checkpoint
from emaae.system.errors import UserError


def npz(path: Path) -> None:
    np.savez_compressed(path, features=speech(100, seed=1))


def weights(path: Path) -> None:
    torch.manual_seed(0)
    checkpoint.save(path, CNNAutoEncoder(13, 16, 2, 2).state_dict())


def loaded(path: Path):
    return {name: tensor.tolist() for name, tensor in checkpoint.load(path).items()}


KINDS = {"npz": (npz, lambda path: read_features(path).tolist()), "pth": (weights, loaded)}


@pytest.fixture(params=KINDS)
def file(request, tmp_path):
    """A path, how it is read, its bytes."""
    path = tmp_path / f"x.{request.param}"
    write, read = KINDS[request.param]
    write(path)
    return path, read, path.read_bytes()


def refused(path, read) -> bool:
    try:
        read(path)
    except UserError as error:
        names(error, path)
        return True
    return False


def test_a_file_that_was_cut_off_is_refused_by_name(file, tell):
    path, read, content = file
    for i in range(60):
        path.write_bytes(content[: len(content) * i // 60])
        assert refused(path, read), i
    tell(f"{path.suffix}: 60 cut off, 60 refused by name")


def test_a_flipped_bit_is_refused_by_name_or_changes_no_number(file, tell):
    path, read, content = file
    expected, place, n_refused = read(path), random.Random(0), 0
    for _ in range(300):
        at = place.randrange(len(content))
        flipped = content[at] ^ 1 << place.randrange(8)
        path.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        if refused(path, read):
            n_refused += 1
        else:
            assert read(path) == expected
    tell(f"{path.suffix}: 300 flipped bits, {n_refused} refused by name, the others harmless")
    assert n_refused > 0
