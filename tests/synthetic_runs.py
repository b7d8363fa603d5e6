"""Folders of runs without training: those of a sweep of hundreds of runs, in seconds.

The numbers follow simple laws so that a page drawn from them looks like one: fvu falls and sparsity
rises over the epochs, both by the final alpha; a third of the schedules is better than the rest.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch

from emaae.config import Config
from emaae.data.features import ARTICULATORS
from emaae.models import build_model
from emaae.runs import checkpoint
from emaae.system.files import read_json

CHANNELS = (*ARTICULATORS, "pitch")
SCHEDULES = ("constant", "linear", "cosine", "log_lambda", "target_sparsity")
SIZES = {"inner_size": 16, "n_encoder": 2, "n_decoder": 2}


def write_runs(
    folder: Path,
    *,
    schedules: tuple[str, ...] = SCHEDULES,
    alphas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 20,
    **more: bool,
) -> list[Path]:
    """A run per schedule, alpha and seed under folder/runs; returns their folders."""
    points = itertools.product(schedules, alphas, seeds)
    return [
        write_run(folder / "runs" / f"{i:04d}", *point, epochs=epochs, **more)
        for i, point in enumerate(points, 1)
    ]


def write_run(
    folder: Path,
    schedule: str = "cosine",
    alpha_max: float = 0.5,
    seed: int = 0,
    *,
    epochs: int = 20,
    curves: bool = True,
    test: bool = True,
    model: bool = False,
) -> Path:
    """The files of one run that finished; model: with random weights. Returns its folder."""
    folder.mkdir(parents=True)
    given = {"update": True, "penalty_scheduler": schedule, "alpha_max": alpha_max, "seed": seed}
    config = Config.from_mapping(given | SIZES | {"epochs": epochs, "alpha": 0.05})
    sizes = {"utterances": 4, "frames": 400, "fingerprint": "0" * 32}
    splits = ("train", "val", "test") if test else ("train", "val")
    found = {"data": dict.fromkeys(splits, sizes), "schedule": config.schedule_name}
    _write(folder / "config.json", vars(config) | found | {"git_commit": "0" * 40})

    random = np.random.default_rng([seed, round(100 * alpha_max), len(schedule)])
    rows = [_row(epoch, epochs, schedule, alpha_max, random) for epoch in range(1, epochs + 1)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "history.jsonl").write_text(lines, encoding="utf-8")

    chosen = min(rows, key=lambda row: row["val/score"])
    metrics = {"select/score": chosen["val/score"], "select/epoch": chosen["epoch"]}
    metrics |= {"select/alpha": chosen["alpha"], "status": "finished"}
    if test:
        metrics |= {f"test/{k[4:]}": v for k, v in chosen.items() if k.startswith("val/")}
    if curves:
        persistence = 0.8 + chosen["val/sparsity"] * (1.2 - alpha_max) + random.normal(0, 0.05)
        _write(folder / "curves.json", _curves("test" if test else "val", persistence))
        metrics |= {"shift/persistence": persistence, "shift/half_life_ms": 90 * persistence}
        metrics |= {"shift/gain_10ms": 1.1 / persistence, "shift/self_similarity_20ms": 0.9}
    _write(folder / "metrics.json", metrics)
    if model:
        write_model(folder)
    _write_reconstruction(folder / "reconstructions" / f"epoch-{epochs:04d}", random)
    return folder


def write_model(folder: Path) -> None:
    """Random weights as the model of a run."""
    torch.manual_seed(0)
    net = build_model(**SIZES)
    checkpoint.save(folder / "best.pth", net.state_dict())
    _write(folder / "model_config.json", read_json(folder / "config.json") | net.architecture())


def _row(epoch: int, epochs: int, schedule: str, alpha_max: float, random) -> dict:
    done = epoch / epochs
    rise = {"constant": 1.0, "linear": done, "cosine": (1 - np.cos(np.pi * done)) / 2}
    alpha = alpha_max * rise.get(schedule, done**2)
    good = 0.8 if schedule in ("cosine", "log_lambda") else 1.0
    fvu = good * (0.02 + 0.12 * alpha**2) + np.exp(-6 * done) + 0.004 * random.random()
    sparsity = 1 - np.exp(-1 - 3 * alpha) + 0.01 * random.random()
    row = {"epoch": epoch, "alpha": alpha, "lr": 1e-3, "lambda_eff": alpha / (1 - alpha) * 13 / 16}
    for split, worse in (("train", 1.0), ("val", 1.1)):
        loss = (1 - alpha) * worse * fvu + alpha * 0.1
        row |= {f"{split}/loss": loss, f"{split}/mse": worse * fvu, f"{split}/penalty": 0.1}
    row |= {"val/fvu": 1.1 * fvu, "val/sparsity": sparsity, "val/l0": 16 * (1 - sparsity)}
    row |= {"val/dead": max(0.0, alpha - 0.4), "val/r_articulators": 1 - fvu, "val/hoyer": sparsity}
    row |= {f"val/r/{name}": 1 - fvu * (1 + i / 9) for i, name in enumerate(CHANNELS)}
    row |= {f"val/fvu/{name}": fvu * (1 + i / 9) for i, name in enumerate(CHANNELS)}
    row |= {"val/self_similarity_20ms": 0.9, "val/self_similarity_80ms": 0.5}
    row["val/live_sparsity"] = sparsity
    row["val/density_log10"] = [0] * 12 + [1, 1, 2, 2, 4, 3, 2, 1]
    row["val/score"] = row["val/fvu"] + max(0.0, 0.9 - sparsity) / 0.9
    return row


def _curves(split: str, persistence: float) -> dict:
    lags = np.arange(0, 501, 20)
    cutoffs = np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.6, 0.8])
    alike, smooth = np.exp(-lags / 130), np.exp(-8 * cutoffs)
    return {
        "split": split,
        "self_similarity": {
            "lag_ms": lags.tolist(),
            "encoding": (alike ** (1 / persistence)).tolist(),
            "input": alike.tolist(),
        },
        "gain": {
            "shift_ms": [5, 10, 20, 40],
            "encoding": [1.2 / persistence, 1.1 / persistence, 1 / persistence, 0.9],
            "input": [1, 1, 1, 1],
        },
        "lowpass": {
            "cutoff": cutoffs.tolist(),
            "encoding": (smooth / persistence).tolist(),
            "input": smooth.tolist(),
        },
    }


def _write_reconstruction(folder: Path, random) -> None:
    folder.mkdir(parents=True)
    truth = np.cumsum(random.normal(size=(60, len(CHANNELS))), 0).astype(np.float32)
    prediction = truth + random.normal(0, 0.3, truth.shape).astype(np.float32)
    r = [np.corrcoef(truth[:, i], prediction[:, i])[0, 1] for i in range(len(CHANNELS))]
    channels, name = np.array(CHANNELS), np.array("103-1240-0000")
    named = {"truth": truth, "prediction": prediction, "channels": channels, "name": name}
    np.savez(folder / "103-1240-0000.npz", r=np.array(r), **named)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
