"""The original project's files: read exactly, written so that its class encodes the same."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, small_run, stir
from torch import nn

import emaae
import train
from emaae import command_line
from emaae.__main__ import main
from emaae.corpus.encode import decode, encode
from emaae.loading import load_model
from emaae.models import NORMS, CNNAutoEncoder, stack_kernels, stack_widths
from emaae.runs.checkpoint import export_original, save
from emaae.system.errors import UserError
from emaae.system.files import write_json

SHARED = ROOT.parent / "shared" / "data" / "original_checkpoint"
N_BLOCKS = (2, 3, 4, 5)


class OriginalBlock(nn.Module):
    """Batch normalisation, convolution, ReLU, by the names of the original class."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int):
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(n_in)
        self.conv = nn.Conv1d(n_in, n_out, kernel_size, padding="same")

    def forward(self, x):
        return torch.relu(self.conv(self.batchnorm(x)))


class Original(nn.Module):
    """The original class, as far as its state_dict and model_config.json determine it."""

    def __init__(self, config: dict):
        super().__init__()
        self.model = nn.Module()
        for stack in ("encoder", "decoder"):
            n_blocks = config[f"n_{stack}"]
            widths = [config["input_dim"], *stack_widths(config["inner_size"], n_blocks)]
            widths = widths if stack == "encoder" else widths[::-1]
            if n_blocks == 5:
                widths = [widths[0], *widths]
            blocks = nn.Sequential()
            for i, (n_in, n_out, k) in enumerate(zip(widths, widths[1:], stack_kernels(n_blocks))):
                blocks.add_module(f"block{i}", OriginalBlock(n_in, n_out, k))
            self.model.add_module(stack, blocks)

    @classmethod
    def load(cls, folder: Path) -> "Original":
        config = json.loads((folder / "model_config.json").read_text())
        (weights,) = folder.glob("*.pth")
        model = cls(config)
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval()

    def encode(self, x):
        return self.model.encoder(x)

    def decode(self, z):
        return self.model.decoder(z)


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random biases, scales and batch statistics."""
    torch.manual_seed(seed)
    stir(model, 0.3)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm.weight" in name:
                tensor.copy_(0.5 + torch.rand_like(tensor))
    return model.eval()


def written(folder: Path, n_encoder: int = 3, n_decoder: int = 2, **more) -> Original:
    """A model of the original project, which writes its files into a folder."""
    config = {"model_type": "cnn", "inner_size": 24, "input_dim": 13, "learning_rate": 0.001}
    config |= {"n_encoder": n_encoder, "n_decoder": n_decoder, "alpha": 0.25} | more
    torch.manual_seed(0)  # whatever ran before
    model = stirred(Original(config))
    folder.mkdir(exist_ok=True, parents=True)
    name = f"CNN_Autoencoder_ne{n_encoder}_nd{n_decoder}_innersz24.pth"
    save(folder / name, model.state_dict())
    write_json(folder / "model_config.json", config)
    return model


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_a_checkpoint_of_the_original_project_gives_its_encoding_and_reconstruction():
    expected = np.load(SHARED / "expected.npz")
    x = torch.from_numpy(expected["input"])
    (weights,) = SHARED.glob("*.pth")
    for ref in (SHARED, weights):
        model = emaae.load_model(ref)
        with torch.no_grad():
            y, z = model(x)
            assert torch.equal(model.decode(model.encode(x)), y)
        np.testing.assert_allclose(z.numpy(), expected["encoding"], atol=1e-5)
        np.testing.assert_allclose(y.numpy(), expected["reconstruction"], atol=1e-5)
        assert weights.name == f"{model.get_type()}.pth"
    z = encode(model, expected["input"][0].T, window_frames=50)
    np.testing.assert_allclose(z.T, expected["encoding"][0], atol=1e-5)


@pytest.mark.parametrize("n_encoder", N_BLOCKS)
@pytest.mark.parametrize("n_decoder", N_BLOCKS)
def test_every_architecture_of_the_original_is_read_and_encodes_in_windows(
    tmp_path, n_encoder, n_decoder
):
    theirs = written(tmp_path, n_encoder, n_decoder)
    ours = load_model(tmp_path)
    x = torch.randn(2, 13, 61)
    with torch.no_grad():
        z = theirs.encode(x)
        y = theirs.decode(z)
        assert torch.allclose(ours.encode(x), z, atol=1e-5)
        assert torch.allclose(ours.decode(z), y, atol=1e-5)
    assert 0.1 < (z == 0).float().mean() < 0.9
    assert 0.1 < (y == 0).float().mean() < 0.9
    for utterance, code, back in zip(x, z, y):
        assert np.allclose(encode(ours, utterance.T.numpy(), 9).T, code, atol=1e-5)
        assert np.allclose(decode(ours, code.T.numpy(), 9).T, back, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_encoding_and_decoding_change_nothing_and_do_not_depend_on_the_mode(norm):
    model = stirred(CNNAutoEncoder(13, 24, 3, 3, norm=norm))
    x = torch.randn(4, 13, 30)
    z, before = model.encode(x), copy.deepcopy(model.state_dict())
    y = model.decode(z)
    model.train()
    assert torch.equal(model.encode(x), z)
    assert torch.equal(model.decode(z), y)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "original"])
def test_training_uses_batch_statistics_and_updates_running_statistics(norm):
    model = stirred(CNNAutoEncoder(13, 24, 3, 3, norm=norm)).train()
    before = copy.deepcopy(model.state_dict())
    x = 3 * torch.randn(4, 13, 30) + 1
    assert not torch.allclose(model(x).z, model.encode(x))
    moved = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
    assert {name.rpartition(".")[2] for name in moved} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize("norm", ["none", "batch", "original"])
@pytest.mark.parametrize("n_blocks", N_BLOCKS)
@pytest.mark.parametrize("input_dim", [13, 14])
def test_an_exported_model_gives_the_same_encoding_in_the_original_class(
    tmp_path, norm, n_blocks, input_dim
):
    model = stirred(CNNAutoEncoder(input_dim, 24, n_blocks, 7 - n_blocks, norm=norm))
    sd = torch.linspace(0.2, 40, input_dim)
    model.normalise(torch.linspace(-3, 150, input_dim), sd)
    export_original(model, tmp_path, {"alpha": 0.5})
    theirs, x = Original.load(tmp_path), torch.randn(2, input_dim, 40) * sd[:, None]
    x += model.mean[:, None]
    with torch.no_grad():
        z, y = model.encode(x), model.decode(model.encode(x))
        assert torch.allclose(theirs.encode(x), z, atol=1e-5)
        assert (z > 0).any()
        if norm != "original":
            assert torch.allclose(theirs.decode(z), y.relu(), atol=1e-3, rtol=1e-5)
            assert (y < 0).any()
        again = load_model(tmp_path)
        assert torch.allclose(again.encode(x), z, atol=1e-5)
    assert again.norm == "original"
    assert json.loads((tmp_path / "model_config.json").read_text())["alpha"] == 0.5


def test_reading_and_exporting_a_model_gives_the_same_files(tmp_path):
    written(tmp_path / "theirs", alpha=0.125, early_stop=True, learning_rate=0.01)
    assert main(["export", f"--model={tmp_path / 'theirs'}", "--format=original",
                 f"--out={tmp_path / 'again'}"]) == 0  # fmt: skip
    states, configs = [], []
    for folder in (tmp_path / "theirs", tmp_path / "again"):
        (weights,) = folder.glob("*.pth")
        states.append(torch.load(weights, weights_only=True))
        configs.append(json.loads((folder / "model_config.json").read_text()))
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        assert value.dtype == states[1][name].dtype
        assert torch.allclose(value.double(), states[1][name].double(), atol=1e-6), name
    assert configs[0].items() <= configs[1].items()


def test_the_export_says_that_negative_reconstructions_become_zero(tmp_path, capsys):
    save(tmp_path / "best.pth", CNNAutoEncoder(13, 24, 2, 2).state_dict())
    write_json(tmp_path / "model_config.json", CNNAutoEncoder(13, 24, 2, 2).architecture())
    command = ["export", f"--model={tmp_path}", "--format=original", f"--out={tmp_path / 'o'}"]
    assert main(command) == 0
    assert "reconstructions end in a ReLU there" in capsys.readouterr().out
    written(tmp_path / "theirs")
    assert main([command[0], f"--model={tmp_path / 'theirs'}", *command[2:]]) == 0
    assert "ReLU" not in capsys.readouterr().out


def test_a_layer_norm_cannot_be_exported(tmp_path):
    with pytest.raises(UserError, match="norm layer cannot be expressed in the original format"):
        export_original(CNNAutoEncoder(13, 24, 2, 2, norm="layer"), tmp_path / "o", {})
    assert not (tmp_path / "o").exists()


def test_a_model_of_the_original_project_is_trained_further_and_evaluated(tmp_path, trees, capsys):
    theirs = written(tmp_path / "theirs", 2, 2)
    (weights,) = (tmp_path / "theirs").glob("*.pth")
    flags = small_run(trees, tmp_path / "runs")
    flags = [f for f in flags if not f.startswith(("--inner", "--n_", "--epochs"))]
    flags += [f"--checkpoint={weights}"]
    assert train.main([*flags, "--epochs=2", "--lr=0.01", "--run_name=further"]) == 0
    run = tmp_path / "runs" / "further"
    further = load_model(run)
    assert further.norm == "original"
    x = torch.randn(1, 13, 30)
    assert not torch.allclose(further.encode(x), theirs.encode(x), atol=1e-3)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert rows[1]["train/loss"] < rows[0]["train/loss"]

    assert train.main([*flags, "--eval_only", "--run_name=measured"]) == 0
    measured = json.loads((tmp_path / "runs/measured/metrics.json").read_text())
    capsys.readouterr()
    test = f"--features={trees['test']}"
    assert main(["evaluate", f"--model={tmp_path / 'theirs'}", test, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fvu"] == measured["test/fvu"]
    assert told["shift/persistence"] == measured["shift/persistence"]


def test_the_weights_of_the_original_need_its_architecture(tmp_path):
    written(tmp_path)
    (weights,) = tmp_path.glob("*.pth")
    config = command_line.config_from({"checkpoint": str(weights)})
    assert (config.norm, config.inner_size, config.n_encoder) == ("original", 24, 3)
    path = tmp_path / "model_config.json"
    write_json(path, json.loads(path.read_text()) | {"norm": "none"})
    with pytest.raises(UserError, match="has the entry .*norm.* does not know; give its"):
        load_model(tmp_path)


def test_a_model_config_of_the_original_gives_its_sizes_to_a_model_of_another_norm(tmp_path):
    written(tmp_path)
    given = {"model_config": str(tmp_path / "model_config.json"), "norm": "layer"}
    config = command_line.config_from(given)
    assert (config.norm, config.inner_size) == ("layer", 24)


@pytest.mark.parametrize(("name", "value"), [("batchnorm.running_var", -1.0), ("conv.bias", "nan")])
def test_broken_weights_of_the_original_are_refused_by_our_name(tmp_path, name, value):
    state = written(tmp_path).state_dict()
    state[f"model.encoder.block0.{name}"].fill_(float(value))
    (weights,) = tmp_path.glob("*.pth")
    save(weights, state)
    with pytest.raises(UserError, match=r"encoder.0.* holds numbers that are not finite") as told:
        load_model(tmp_path)
    assert "\n" not in str(told.value)


def test_an_entry_that_the_original_does_not_have_is_refused(tmp_path):
    state = written(tmp_path).state_dict()
    (weights,) = tmp_path.glob("*.pth")
    save(weights, state | {"model.encoder.block9.conv.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"has the entry encoder.9.conv.weight"):
        load_model(tmp_path)


# ---- what only looks like it


@pytest.fixture
def theirs(tmp_path):
    """The files of a model of the original project, and its model_config.json."""
    model = stirred(CNNAutoEncoder(inner_size=16, n_encoder=2, n_decoder=2, norm="original"))
    export_original(model, tmp_path, {})
    (weights,) = tmp_path.glob("*.pth")
    return weights, json.loads((tmp_path / "model_config.json").read_text())


def say(theirs, **more):
    weights, config = theirs
    write_json(weights.parent / "model_config.json", config | more)
    return weights


@pytest.mark.parametrize("name", command_line.LATER_KEYS)
def test_a_model_of_a_later_version_of_the_original_is_refused_by_its_settings(theirs, name):
    with pytest.raises(UserError, match=f"says {name}: it is of a later version"):
        load_model(say(theirs, **{name: True}))


def test_unknown_entries_of_a_foreign_model_config_are_named(theirs):
    with pytest.raises(UserError, match="says dilation, strides, which this program does not know"):
        load_model(say(theirs, dilation=2, strides=[1, 2]))


def test_a_config_without_the_place_of_batch_normalisation_gets_a_warning(theirs, recwarn):
    load_model(say(theirs))
    assert not recwarn
    with pytest.warns(UserWarning, match='add "norm": "original" to the file.*"batch"'):
        load_model(say(theirs, patience=20))
    recwarn.clear()
    assert load_model(say(theirs, patience=20, norm="original")).norm == "original"
    assert not recwarn


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
)
@pytest.mark.parametrize("norm", ["original", "none"])
def test_wrappers_that_trainers_put_around_a_state_dict_are_removed(tmp_path, wrap, norm):
    model = stirred(CNNAutoEncoder(inner_size=16, n_encoder=2, n_decoder=2, norm=norm))
    if norm == "original":
        export_original(model, tmp_path, {})
    else:
        save(tmp_path / "best.pth", model.state_dict())
        write_json(tmp_path / "model_config.json", model.architecture())
    (weights,) = tmp_path.glob("*.pth")
    x = torch.randn(1, 13, 20)
    expected = load_model(weights).encode(x)
    save(weights, wrap(torch.load(weights, weights_only=True)))
    assert torch.equal(load_model(weights).encode(x), expected)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\x80\x02}q\x00.", "a pickle, perhaps a checkpoint of PyTorch before 1.6"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"<!doctype html><html>", "a page of HTML"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (b"\x10\0\0\0\0\0\0\0{}              ", "a file of safetensors"),
        (b"", "empty"),
        (b"something else", "not a readable checkpoint"),
    ],
)
def test_files_of_other_kinds_are_refused_by_kind(theirs, content, says):
    weights, _ = theirs
    weights.write_bytes(content)
    with pytest.raises(UserError, match=f"is {says}"):
        load_model(weights)


def test_the_format_of_old_pytorch_is_not_reported_as_a_broken_file(theirs):
    weights, _ = theirs
    state = torch.load(weights, weights_only=True)
    torch.save(state, weights, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="a pickle, perhaps a checkpoint of PyTorch before 1.6"):
        load_model(weights)
