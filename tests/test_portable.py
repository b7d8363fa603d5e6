"""Exported models equal ours, in an interpreter without this package."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import program, speech, stir

from emaae import models
from emaae.__main__ import main
from emaae.models import build_model
from emaae.runs import checkpoint, portable, standalone
from emaae.system.errors import UserError
from emaae.system.files import write_json

LENGTHS = (1, 60, 500)
KINDS = [
    {"norm": "none"},
    {"norm": "batch"},
    {"norm": "layer"},
    {"norm": "original"},
    {"activation": "batch_topk"},
    {"activation": "feature_topk", "gate_frames": 5},
    {"n_encoder": 5, "n_decoder": 3, "input_dim": 14},
]
# What each reads: x0, x1, ... of a file; writes z and y of each.
USE = {
    "torch": """
import torch
encode = torch.export.load(f"{folder}/encoder.pt2").module()
decode = torch.export.load(f"{folder}/decoder.pt2").module()
""",
    "onnx": """
import onnxruntime, torch
half = lambda name: onnxruntime.InferenceSession(f"{folder}/{name}.onnx")
encoder, decoder = half("encoder"), half("decoder")
encode = lambda x: torch.from_numpy(encoder.run(None, {"x": x.numpy()})[0])
decode = lambda z: torch.from_numpy(decoder.run(None, {"x": z.numpy()})[0])
""",
    "huggingface": """
import sys
sys.path.insert(0, folder)
from modeling import Model
model = Model(folder)
encode, decode = model.encode, model.decode
""",
}
AROUND = """
import sys
folder, there = sys.argv[1:]
{use}
import numpy as np, torch
try:
    import emaae
    raise SystemExit("emaae is here")
except ImportError:
    pass
found = {{}}
with torch.no_grad(), np.load(there) as kept:
    for name in kept:
        z = encode(torch.from_numpy(kept[name]))
        found["z" + name], found["y" + name] = z.numpy(), decode(z).numpy()
np.savez(there + ".out.npz", **found)
"""


def saved(folder, **architecture):
    """A model with random weights, statistics and thresholds."""
    torch.manual_seed(1)
    model = build_model(**{"inner_size": 24, "n_encoder": 3, "n_decoder": 2} | architecture)
    stir(model, 0.3)
    x = torch.from_numpy(np.stack([speech(400, seed) for seed in range(4)]))
    x = x.transpose(1, 2)[:, [c for c in range(14) if c != 12 or model.input_dim == 14]]
    model.normalise(x.mean((0, 2)), x.std((0, 2)))
    with torch.no_grad():
        for _ in range(3):
            model.train()(x)
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder / "best.pth", model.state_dict())
    write_json(folder / "model_config.json", model.architecture())
    write_json(folder / "metrics.json", {"status": "finished"})
    return checkpoint.load_model_file(folder / "best.pth")


# The model with most in it for `make test`, the others for test-slow.
TELLING = {"activation": "feature_topk", "gate_frames": 5}
SOME = [k if k == TELLING else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]


@pytest.mark.parametrize("form", USE)
@pytest.mark.parametrize("kind", SOME, ids=lambda kind: "-".join(map(str, kind.values())))
def test_each_export_equals_our_model_at_every_length_without_this_package(tmp_path, kind, form):
    model = saved(tmp_path / "m", **kind)
    out = tmp_path / "out"
    command = ["export", "--model", str(tmp_path / "m"), "--format", form, "--out", str(out)]
    assert main(command) == 0
    channels = [c for c in range(14) if c != 12 or model.input_dim == 14]
    recordings = {str(n): speech(n, n)[None, :, channels].transpose(0, 2, 1) for n in LENGTHS}
    recordings = {name: np.ascontiguousarray(x) for name, x in recordings.items()}
    np.savez(tmp_path / "x.npz", **recordings)
    code = AROUND.format(use=USE[form])
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(out), str(tmp_path / "x.npz")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "x.npz.out.npz") as found:
        for name, x in recordings.items():
            z = model.encode(torch.from_numpy(x)).detach()
            y = model.decode(z).detach()
            assert z.abs().max() > 0 or name == "1"
            np.testing.assert_allclose(found[f"z{name}"], z, atol=1e-5 * max(1, z.abs().max()))
            np.testing.assert_allclose(found[f"y{name}"], y, atol=1e-5 * max(1, y.abs().max()))


def test_an_export_that_differs_from_pytorch_is_refused(tmp_path, monkeypatch):
    model = saved(tmp_path / "m")
    monkeypatch.setattr(portable, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="differs from PyTorch by .* expected at most 0"):
        portable.to_onnx(model, tmp_path / "out")
    monkeypatch.setattr(standalone.Model, "_activation", lambda self, h: h)  # no ReLU
    with pytest.raises(UserError, match="differs from PyTorch by .* expected at most 0"):
        portable.to_huggingface(model, tmp_path / "hub", "")
    assert not (tmp_path / "hub" / "modeling.py").exists()


def test_an_export_that_gives_nan_is_refused(tmp_path, monkeypatch):
    model = saved(tmp_path / "m")
    monkeypatch.setattr(standalone.Model, "_activation", lambda self, h: h * float("nan"))
    with pytest.raises(UserError, match="differs from PyTorch by nan"):
        portable.to_huggingface(model, tmp_path / "hub", "")


def test_a_norm_that_modeling_py_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(models.NORMS, "mine", models.FrameNorm)
    model = saved(tmp_path / "m", norm="layer")
    model.norm = "mine"
    with pytest.raises(UserError, match="has no norm mine with activation relu"):
        portable.to_huggingface(model, tmp_path / "hub", "")


NEEDS = [("onnx", "onnxruntime"), ("huggingface", "safetensors")]


@pytest.mark.parametrize(("form", "package"), NEEDS)
def test_without_its_package_the_command_that_installs_it_is_named(
    tmp_path, monkeypatch, form, package
):
    saved(tmp_path / "m")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.torch", None)
    with pytest.raises(UserError, match="pip install -r requirements-export.txt"):
        main(["export", f"--model={tmp_path / 'm'}", f"--format={form}", f"--out={tmp_path / 'o'}"])


def test_models_are_loaded_and_promoted_without_the_extra():
    code = "import sys; sys.modules.update(safetensors=None, onnxruntime=None, onnxscript=None)"
    done = program("-c", f"{code}; import emaae.loading, emaae.tracking.models")
    assert done.returncode == 0, done.stderr


def test_the_folder_for_the_hub_says_what_the_model_is(tmp_path):
    saved(tmp_path / "m")
    out = tmp_path / "hub"
    command = ["export", f"--model={tmp_path / 'm'}", "--format=huggingface", f"--out={out}"]
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling.py",
    }
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: pytorch\n")
    assert "from modeling import Model" in card


@pytest.mark.parametrize("form", ["huggingface", "original"])
def test_a_run_is_not_overwritten(tmp_path, form):
    saved(tmp_path / "m")
    before = {path: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    with pytest.raises(UserError, match="has a model, whose settings it would replace"):
        main(["export", f"--model={tmp_path / 'm'}", f"--format={form}", f"--out={tmp_path / 'm'}"])
    assert {path: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


def test_the_card_of_a_foreign_model_claims_nothing_about_its_training(tmp_path):
    saved(tmp_path / "m")
    (tmp_path / "m" / "metrics.json").unlink()
    command = ["export", f"--model={tmp_path / 'm' / 'best.pth'}", "--format=huggingface"]
    assert main([*command, f"--out={tmp_path / 'hub'}"]) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| data | unknown data |" in card
    assert "demo" not in card
