"""Weights: written whole, loaded without running code, refused when they do not fit."""

import json
import os

import pytest
import torch

import emaae
from emaae import checkpoint
from emaae.errors import UserError
from emaae.models import CNNAutoEncoder


@pytest.fixture
def saved(tmp_path):
    """A model beside its model_config.json, as a run leaves it."""
    torch.manual_seed(0)
    model = CNNAutoEncoder(14, 20, 3, 2, norm="batch")
    model.normalise(torch.randn(14), torch.rand(14) + 0.1)
    checkpoint.save(tmp_path / "best.pth", model.state_dict())
    checkpoint.write_json(tmp_path / "model_config.json", model.architecture())
    return tmp_path, model.eval()


@pytest.mark.parametrize("name", ["", "best.pth"])
def test_a_model_comes_back_with_its_normaliser_in_evaluation_mode(saved, name):
    folder, model = saved
    again = emaae.load_model(folder / name)
    x = 100 * torch.randn(1, 14, 30)
    assert not again.training
    assert torch.equal(again(x).y, model(x).y)
    assert torch.equal(again.encode(x), model.encode(x))


def test_the_weights_are_a_bare_state_dict_that_loads_with_weights_only(saved):
    folder, model = saved
    state = torch.load(folder / "best.pth", weights_only=True)
    assert set(state) == set(model.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "best.pth"
    checkpoint.save(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        checkpoint.write_whole(path, lambda file: file.write(b"half") / 0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["best.pth"]


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    torch.save({"a": Code(tmp_path / "trace")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x.pth is not a checkpoint of plain tensors"):
        checkpoint.load(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_truncated_checkpoint_is_refused_in_one_line(saved, keep):
    path = saved[0] / "best.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(UserError, match=r"best.pth is not") as error:
        emaae.load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inner_size": 30},
            r"encoder.2.conv.weight has shape \(20, 8, 3\), expected \(30, 8, 3\)",
        ),
        ({"norm": "none"}, r"has the entry decoder.0.norm.bias, which .* does not know"),
        ({"n_encoder": 4}, r"encoder.2.conv.weight has shape .*, expected \(8, 8, 3\)"),
    ],
)
def test_weights_of_another_architecture_are_refused(saved, change, message):
    folder, model = saved
    (folder / "model_config.json").write_text(json.dumps(model.architecture() | change))
    with pytest.raises(UserError, match=message):
        emaae.load_model(folder)


def test_what_is_not_there_is_named(tmp_path, saved):
    with pytest.raises(UserError, match="no model at .*nowhere"):
        emaae.load_model(tmp_path / "nowhere")
    (saved[0] / "model_config.json").unlink()
    with pytest.raises(UserError, match="model_config.json is missing"):
        emaae.load_model(saved[0])
