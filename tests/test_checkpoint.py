"""Weights: written whole, loaded without running code, refused when they do not fit."""

import json
import os
import zipfile

import hostile
import pytest
import torch

import emaae
from emaae.config import Config
from emaae.models import CNNAutoEncoder, build_model
from emaae.runs import checkpoint
from emaae.system.errors import UserError
from emaae.system.files import write_atomically, write_bytes, write_json


@pytest.fixture
def saved(tmp_path):
    """A model beside its model_config.json, as a run leaves it."""
    torch.manual_seed(0)
    model = CNNAutoEncoder(14, 20, 3, 2, norm="batch")
    model.normalise(torch.randn(14), torch.rand(14) + 0.1)
    checkpoint.save(tmp_path / "best.pth", model.state_dict())
    write_json(tmp_path / "model_config.json", model.architecture())
    return tmp_path, model.eval()


@pytest.mark.parametrize("name", ["", "best.pth"])
def test_a_loaded_model_has_its_normaliser_and_is_in_evaluation_mode(saved, name):
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


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "best.pth"
    checkpoint.save(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda file: file.write(b"half") / 0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["best.pth"]


def test_processes_of_one_number_on_two_machines_write_files_of_their_own(tmp_path):
    path = tmp_path / "best.pth"

    def write(file):
        file.write(b"one")
        write_bytes(path, b"another")  # as a process on another machine would meanwhile

    write_atomically(path, write)
    assert path.read_bytes() == b"one"
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


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "RuntimeError"), ("central directory\nis missing", "central directory")],
)
def test_a_checkpoint_that_torch_refuses_is_named_with_the_first_line_of_its_error(
    saved, monkeypatch, text, named
):
    def refuse(*given, **more):
        raise RuntimeError(text)

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match=rf"readable checkpoint \({named}\): copy it again"):
        emaae.load_model(saved[0])


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_truncated_checkpoint_is_refused_in_one_line(saved, keep):
    path = saved[0] / "best.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(UserError, match=r"best.pth is (not|empty)") as error:
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


def test_missing_files_of_a_model_are_named(tmp_path, saved):
    with pytest.raises(UserError, match="no model at .*nowhere"):
        emaae.load_model(tmp_path / "nowhere")
    (saved[0] / "model_config.json").unlink()
    with pytest.raises(UserError, match="model_config.json is missing"):
        emaae.load_model(saved[0])


# ---- made to do harm


def members(path):
    with zipfile.ZipFile(path) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def rewritten(path, change, method=zipfile.ZIP_STORED):
    """The same archive, its members as `change(name, content)` gives them."""
    old = members(path)
    with zipfile.ZipFile(path, "w", method) as archive:
        for info, content in old:
            archive.writestr(info.filename, change(info.filename, content))


def test_a_flipped_bit_in_the_weights_is_refused(saved):
    path = saved[0] / "best.pth"
    whole = path.read_bytes()
    (info, content) = max(members(path), key=lambda member: len(member[1]))
    at = whole.index(content) + len(content) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert torch.load(path, weights_only=True)  # which tells nothing
    with pytest.raises(UserError, match=rf"best.pth is not a readable .*{info.filename}"):
        emaae.load_model(path)


def test_a_compressed_checkpoint_is_refused(saved):
    rewritten(saved[0] / "best.pth", lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="best.pth is not a checkpoint as torch.save writes it"):
        emaae.load_model(saved[0])


def test_a_checkpoint_that_claims_more_bytes_than_it_has_is_refused(saved):
    (saved[0] / "best.pth").write_bytes(hostile.archive("x/data/0", b"", 2 << 30, 0))
    with pytest.raises(UserError, match="best.pth is not a checkpoint as torch.save writes it"):
        emaae.load_model(saved[0])


def test_a_pickle_that_would_crash_the_interpreter_is_refused(saved):
    nested = b"\x80\x02})" + b"\x85" * 250_000 + b"K\x01s."
    swap = {"data.pkl": nested}
    path = saved[0] / "best.pth"
    rewritten(path, lambda name, content: swap.get(name.partition("/")[2], content))
    with pytest.raises(UserError, match="its list of tensors has more than 60000 bytes"):
        emaae.load_model(path)


def test_a_checkpoint_much_larger_than_the_model_is_not_read(saved):
    with open(saved[0] / "best.pth", "ab") as file:
        file.truncate(1 << 33)  # takes no space
    with pytest.raises(UserError, match="best.pth has 8589934592 bytes: expected at most 1"):
        emaae.load_model(saved[0])


def test_weights_that_are_complex_numbers_are_refused(saved):
    folder, model = saved
    state = model.state_dict()
    name = "encoder.0.conv.weight"
    torch.save(state | {name: state[name].to(torch.complex64)}, folder / "best.pth")
    with pytest.raises(UserError, match=f"{name} has dtype torch.complex64"):
        emaae.load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"inner_size": "many"}', "model_config.json: --inner_size must be a whole number"),
        ('{"inner_size": [[[[1]]]]}', "model_config.json: --inner_size must be a whole number"),
        ('{"inner_size": 1e400}', "model_config.json: --inner_size must be a whole number"),
        ('{"inner_size": 99999999}', "model_config.json: --inner_size must be .*at most 65536"),
        (f'{{"inner_size": {"9" * 5000}}}', "model_config.json is not JSON"),
        ('{"inner_size": 20, "norm": {}}', "model_config.json: --norm must be text"),
        ('{"inner_size": 20, "n_encoder": true}', "model_config.json: --n_encoder must be a whole"),
        ('{"inner_size": 20, "input_dim": "x"}', "model_config.json: input_dim must be 13"),
        ('{"a":' * 100_000, "model_config.json is not JSON"),
        ("[" * 100_000, "model_config.json is not JSON"),
        ("[1]", "model_config.json must hold a JSON object"),
        (" " * 20_000_000, "model_config.json has 20000000 bytes: expected at most 16777216"),
    ],
    ids=lambda case: case[:40],
)
def test_a_model_config_with_a_wrong_value_is_refused_by_name(saved, text, message):
    (saved[0] / "model_config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        emaae.load_model(saved[0])


def test_a_config_that_claims_a_huge_model_takes_no_memory(saved, monkeypatch):
    folder, model = saved
    lie = model.architecture() | {"inner_size": 16384, "n_encoder": 5, "n_decoder": 5}
    (folder / "model_config.json").write_text(json.dumps(lie))
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *a, **k: pytest.fail("9 GB are taken"))
    with pytest.raises(UserError, match="encoder.0.conv.weight has shape"):
        emaae.load_model(folder)


def test_a_model_larger_than_memory_is_refused(monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    config = Config.from_mapping({"inner_size": 1024})
    with pytest.raises(UserError, match="has 0.0 GB of weights, more than .*: lower --inner_size"):
        build_model(**config.architecture)


def test_a_file_that_is_not_the_state_of_a_run_is_refused(tmp_path):
    checkpoint.save(tmp_path / "last.pt", {"epoch": 3})
    with pytest.raises(UserError, match="last.pt has format None, this program reads 3"):
        checkpoint.load_last(tmp_path)
