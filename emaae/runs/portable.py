"""Exported models: files that encode and decode without this package.

Each takes raw features (batch, channels, time) of any length, with the normaliser inside.

    torch        encoder.pt2, decoder.pt2          torch.export.load("encoder.pt2").module()(x)
    onnx         encoder.onnx, decoder.onnx        for onnxruntime
    huggingface  model.safetensors, config.json, README.md, modeling.py

The last two are checked: they differ from PyTorch by at most 1e-5 of max(1, largest value).
"""

import logging
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emaae.models import CNNAutoEncoder
from emaae.system.errors import UserError, needs_extra
from emaae.system.files import make_folder, write_atomically, write_bytes, write_json

TORCH_FILES = ("encoder.pt2", "decoder.pt2")
TOLERANCE = 1e-5  # largest difference from PyTorch, relative to max(1, largest value)
TEST_LENGTHS = (1, 40, 333)  # numbers of frames of the test inputs


class _Coder(nn.Module):
    """The encoder or decoder of a model, for input (batch, channels, time)."""

    def __init__(self, model: CNNAutoEncoder, decodes: bool):
        super().__init__()
        self.model, self.decodes = model, decodes
        self.channels = model.inner_size if decodes else model.input_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.model.decode(x) if self.decodes else self.model.encode(x)


def _coders(model: CNNAutoEncoder) -> dict[str, _Coder]:
    return {"encoder": _Coder(model, decodes=False), "decoder": _Coder(model, decodes=True)}


def _exported(coder: _Coder) -> torch.export.ExportedProgram:
    dims = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("time", min=1)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = torch.zeros(2, coder.channels, 50)
        return torch.export.export(coder.eval(), (example,), dynamic_shapes=(dims,))


def to_torch(model: CNNAutoEncoder, out: Path) -> None:
    """Write encoder.pt2 and decoder.pt2, for this or a later torch. Raises UserError."""
    make_folder(out)
    for name, coder in _coders(model).items():
        # torch.export.save accepts an open file.
        write_atomically(out / f"{name}.pt2", partial(torch.export.save, _exported(coder)))


def to_onnx(model: CNNAutoEncoder, out: Path) -> float:
    """Write encoder.onnx and decoder.onnx; returns their largest difference from PyTorch.

    It is relative to max(1, largest value). Raises UserError when it is above 1e-5, and when a
    package is missing.
    """
    with needs_extra("export"):
        import onnxruntime
        import onnxscript  # noqa: F401
    make_folder(out)
    sessions = {}
    for name, coder in _coders(model).items():
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported: Any = torch.onnx.export(
                _exported(coder), input_names=["x"], output_names=[name], verbose=False
            )
        content = exported.model_proto.SerializeToString()
        write_bytes(out / f"{name}.onnx", content)
        sessions[name] = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return _check_against_pytorch(
        model, out, lambda name, x: sessions[name].run(None, {"x": x.numpy()})[0]
    )


def _check_against_pytorch(
    model: CNNAutoEncoder, out: Path, run_exported: Callable[[str, Tensor], Any]
) -> float:
    """The largest difference between an exported model and ours, relative to max(1, largest value).

    run_exported: takes "encoder" or "decoder" and a batch. Raises UserError for a difference above
    1e-5, or an undefined one.
    """
    largest_difference = 0.0
    for name, coder in _coders(model).items():
        for n in TEST_LENGTHS:
            x = torch.randn(2, coder.channels, n, generator=torch.Generator().manual_seed(n))
            with torch.no_grad():
                expected = coder(x).numpy()
            scale = max(1.0, float(np.abs(expected).max()))
            difference = float(np.abs(run_exported(name, x) - expected).max()) / scale
            if not difference <= TOLERANCE:  # NaN too
                raise UserError(
                    f"{out}: its model differs from PyTorch by {difference:.1g} of the largest "
                    f"value, expected at most {TOLERANCE:g}: do not use it"
                )
            largest_difference = max(largest_difference, difference)
    return largest_difference


def to_huggingface(model: CNNAutoEncoder, out: Path, card: str) -> None:
    """Write a folder that `hf upload` takes, with the card as its README. Raises UserError."""
    with needs_extra("export"):
        from safetensors.torch import save

        from emaae.runs import standalone
    make_folder(out)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(out / "model.safetensors", save(state, metadata={"format": "pt"}))
    write_json(out / "config.json", model.architecture())
    standalone_model = standalone.Model(out)
    methods = {"encoder": standalone_model.encode, "decoder": standalone_model.decode}
    try:
        _check_against_pytorch(model, out, lambda name, x: methods[name](x).numpy())
    except KeyError as error:  # of a norm or activation that standalone.py lacks
        raise UserError(
            f"modeling.py has no norm {model.architecture()['norm']} with activation "
            f"{model.architecture()['activation']} ({error} is not among the weights): extend "
            "emaae/runs/standalone.py, or give --format torch"
        ) from None
    source = Path(standalone.__file__).read_text(encoding="utf-8")
    front = "---\nlibrary_name: pytorch\ntags: [speech, articulation, sparse-autoencoder]\n---\n\n"
    use = (
        "## Use\n\n```python\nfrom modeling import Model\n\n"
        'model = Model(".")  # this folder, with torch and safetensors\n'
        f"z = model.encode(x)  # x (batch, {model.input_dim}, time) -> "
        f"(batch, {model.inner_size}, time)\n```\n\n"
    )
    card = re.sub("## Use\n.*?(?=## )", lambda _: use, card, flags=re.DOTALL)  # that of a run
    write_bytes(out / "modeling.py", source.encode())
    write_bytes(out / "README.md", (front + card).encode())
