"""A model of emaae, which needs PyTorch and safetensors alone.

FOLDER holds config.json, model.safetensors and, as modeling.py, this file.

model = Model("FOLDER")
z = model.encode(x)  # x (batch, channels, time) raw features -> (batch, units, time), >= 0
y = model.decode(z)  # -> (batch, channels, time), raw features
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F


class Model:
    """Encoder, decoder and the normaliser of raw features, as they were trained."""

    def __init__(self, folder: str | Path):
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.weights = load_file(Path(folder) / "model.safetensors")

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Raw features (batch, channels, time) -> encoding (batch, units, time), >= 0."""
        h = (x - self.weights["mean"][:, None]) / self.weights["sd"][:, None]
        for i in range(self.config["n_encoder"]):
            h = self._block(f"encoder.{i}", h)
            if i < self.config["n_encoder"] - 1:
                h = F.relu(h)
        return self._activation(h)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Encoding (batch, units, time) -> raw features (batch, channels, time)."""
        for i in range(self.config["n_decoder"]):
            last = i == self.config["n_decoder"] - 1
            z = self._block(f"decoder.{i}", z, normed=not last)
            if not last or self.config["norm"] == "original":
                z = F.relu(z)
        return z * self.weights["sd"][:, None] + self.weights["mean"][:, None]

    def _block(self, name: str, h: Tensor, normed: bool = True) -> Tensor:
        norm_first = self.config["norm"] == "original"
        weight, bias = (self.weights[f"{name}.conv.{part}"] for part in ("weight", "bias"))
        h = self._norm(name, h) if norm_first else h
        h = F.conv1d(h, weight, bias, padding=weight.shape[2] // 2)
        return self._norm(name, h) if normed and not norm_first else h

    def _norm(self, name: str, h: Tensor) -> Tensor:
        kind = self.config["norm"]
        if kind == "none":
            return h
        weight, bias = (self.weights[f"{name}.norm.{part}"] for part in ("weight", "bias"))
        if kind == "layer":
            return F.layer_norm(h.transpose(1, 2), weight.shape, weight, bias).transpose(1, 2)
        mean, var = (self.weights[f"{name}.norm.running_{part}"] for part in ("mean", "var"))
        return F.batch_norm(h, mean, var, weight, bias)

    def _activation(self, h: Tensor) -> Tensor:
        if self.config["activation"] == "relu":
            return F.relu(h)
        name = f"encoder.{self.config['n_encoder'] - 1}.activation.threshold"
        above = self._smoothed(h) > self.weights[name][:, None]
        return F.relu(h) * above

    def _smoothed(self, h: Tensor) -> Tensor:
        n = self.config["gate_frames"] if self.config["activation"] == "feature_topk" else 1
        window = torch.sin(torch.pi * torch.arange(1, n + 1) / (n + 1)).square()
        taps = (window / window.sum()).to(h).expand(h.shape[1], 1, -1)
        return F.conv1d(h, taps, padding=n // 2, groups=h.shape[1])
