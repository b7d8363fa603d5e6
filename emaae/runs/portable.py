"""Models that travel alone: forms that encode and decode without this package.

Each takes raw features (batch, channels, time) of any length, with the normaliser inside.

    torch        encoder.pt2, decoder.pt2          torch.export.load("encoder.pt2").module()(x)
    onnx         encoder.onnx, decoder.onnx        onnxruntime, checked against PyTorch to 1e-5
    huggingface  model.safetensors, config.json, README.md, modeling.py, checked in the same way
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emaae.models import CNNAutoEncoder
from emaae.runs.checkpoint import not_written, write_json, write_whole
from emaae.system.errors import UserError, extra

TORCH_FILES = ("encoder.pt2", "decoder.pt2")
AGREES = 1e-5  # with PyTorch, of the largest value
LENGTHS = (1, 40, 333)  # frames, by which it is checked


class _Half(nn.Module):
    """One direction of a model."""

    def __init__(self, model: CNNAutoEncoder, decodes: bool):
        super().__init__()
        self.model, self.decodes = model, decodes

    def forward(self, x: Tensor) -> Tensor:
        return self.model.decode(x) if self.decodes else self.model.encode(x)


def halves(model: CNNAutoEncoder) -> dict[str, tuple[_Half, int]]:
    """encoder and decoder, each with the channels of its input."""
    return {
        "encoder": (_Half(model, False).eval(), model.input_dim),
        "decoder": (_Half(model, True).eval(), model.inner_size),
    }


def _exported(half: _Half, channels: int) -> torch.export.ExportedProgram:
    dims = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("time", min=1)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(half, (torch.zeros(2, channels, 50),), dynamic_shapes=(dims,))


def to_torch(model: CNNAutoEncoder, out: Path) -> None:
    """Write encoder.pt2 and decoder.pt2, for this or a later torch. Raises UserError."""
    _folder(out)
    for name, (half, channels) in halves(model).items():
        program = _exported(half, channels)
        # torch.export.save takes a file that is open too.
        write_whole(out / f"{name}.pt2", lambda file, it=program: torch.export.save(it, file))


def to_onnx(model: CNNAutoEncoder, out: Path) -> float:
    """Write encoder.onnx and decoder.onnx; returns how far they are from PyTorch at most.

    Raises UserError when they differ by more than 1e-5 of the largest value, or a package lacks.
    """
    with extra("export"):
        import onnxruntime
        import onnxscript  # noqa: F401
    _folder(out)
    sessions = {}
    for name, (half, channels) in halves(model).items():
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                _exported(half, channels), input_names=["x"], output_names=[name], verbose=False
            )
        content = made.model_proto.SerializeToString()
        write_whole(out / f"{name}.onnx", lambda file, it=content: file.write(it))
        sessions[name] = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return _check(model, out, lambda name, x: sessions[name].run(None, {"x": x.numpy()})[0])


def _check(model: CNNAutoEncoder, out: Path, form: Callable[[str, Tensor], Any]) -> float:
    """How far a form in `out` is from the model at most, of the largest value.

    form: gives what its encoder or decoder, by name, makes of a batch. Raises UserError for more
    than 1e-5.
    """
    furthest = 0.0
    for name, (half, channels) in halves(model).items():
        for n in LENGTHS:
            x = torch.randn(2, channels, n, generator=torch.Generator().manual_seed(n))
            with torch.no_grad():
                expected = half(x).numpy()
            scale = max(1.0, float(np.abs(expected).max()))
            furthest = max(furthest, float(np.abs(form(name, x) - expected).max()) / scale)
    if furthest > AGREES:
        raise UserError(
            f"{out}: its model differs from PyTorch by {furthest:.1g} of the largest value, "
            f"expected at most {AGREES:g}: do not use it"
        )
    return furthest


def to_huggingface(model: CNNAutoEncoder, out: Path, card: str) -> None:
    """Write a folder that `hf upload` takes, with the card as its README. Raises UserError."""
    with extra("export"):
        from safetensors.torch import save

        from emaae.runs import standalone
    _folder(out)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    content = save(state, metadata={"format": "pt"})
    write_whole(out / "model.safetensors", lambda file: file.write(content))
    write_json(out / "config.json", model.architecture())
    alone = standalone.Model(out)
    ways = {"encoder": alone.encode, "decoder": alone.decode}
    try:
        _check(model, out, lambda name, x: ways[name](x).numpy())
    except KeyError as error:  # of a norm or activation that others have added
        raise UserError(
            f"modeling.py has no norm {model.architecture()['norm']} with activation "
            f"{model.architecture()['activation']} ({error} is not among the weights): extend "
            "emaae/runs/standalone.py, or give --format torch"
        ) from None
    source = Path(standalone.__file__).read_text(encoding="utf-8")
    front = "---\nlibrary_name: pytorch\ntags: [speech, articulation, sparse-autoencoder]\n---\n\n"
    use = (
        "\n## Without emaae\n\n```python\nfrom modeling import Model\n\n"
        'model = Model(".")  # this folder, with torch and safetensors\n'
        "z = model.encode(x)\n```\n"
    )
    for name, text in {"modeling.py": source, "README.md": front + card + use}.items():
        write_whole(out / name, lambda file, text=text: file.write(text.encode()))


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(not_written(out, error)) from None
