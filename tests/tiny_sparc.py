"""SPARC's model "en", but tiny and with random weights, for machines without a network.

It lies where the Hugging Face hub would put it, under the names of the real files and weights, so
that SPARC's own code loads it as it would load those.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

WIDTH = 64  # of WavLM's hidden states


def write_hub(home: Path) -> dict[str, str]:
    """Write the cache folder of a hub; returns the environment of a program that uses it."""
    environment = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)  # read when it is imported
        from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    # WavLM-large's settings, and 3 of its layers.
    config = WavLMConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        conv_dim=(16,) * 7,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    model = WavLMModel(config)
    wavlm = _snapshot(home, "microsoft/wavlm-large")
    (wavlm / "config.json").write_text(json.dumps(config.to_dict()))
    weights = {as_published(name): value for name, value in model.state_dict().items()}
    torch.save(weights, wavlm / "pytorch_model.bin")

    sparc = _snapshot(home, "cheoljun95/Speech-Articulatory-Coding")
    settings = {
        "normalize": True,
        "crepe_model": "tiny",
        "pitch_q": 4,
        "speech_model": "microsoft/wavlm-large",
        "target_layer": 2,
        "freqcut": 10,
        "spk_ft_size": WIDTH,
        "generator_configs": None,
        "generator_ckpt": None,
        "linear_model_path": None,
        "spk_ft_ckpt": None,
    }
    (sparc / "model_english_1500k.yaml").write_text(yaml.safe_dump(settings))
    linear = {"weight": torch.randn(12, WIDTH) / 4, "bias": torch.randn(12)}
    state = {"linear_model": linear, "generator": {}, "spk_ft": {}}
    torch.save({"config": settings, "state_dict": state}, sparc / "model_english_1500k.ckpt")
    return environment


def _snapshot(home: Path, repository: str) -> Path:
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    return folder / "snapshots" / revision


def as_published(name: str) -> str:
    """The name that a weight has in the published file, which an older PyTorch wrote."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return name.replace("parametrizations.weight.original1", "weight_v")


def voice(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """A harmonic sound around 120 Hz that swells, with some noise (N,)."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    hz = 120 + 15 * np.sin(2 * np.pi * (0.7 * t + random.random()))
    phase = 2 * np.pi * np.cumsum(hz) / rate
    sound = sum(np.sin(k * phase) / k for k in range(1, 9))
    return 0.1 * sound * (1.1 + np.sin(2 * np.pi * 3 * t)) + 0.003 * random.normal(size=len(t))
