"""The artifacts of a run, logged at its end or by a later upload."""

from pathlib import Path
from typing import Any

import numpy as np

from emaae.data.features import FRAME_RATE_HZ
from emaae.metric_table import score_description
from emaae.runs import read
from emaae.runs.model_card import model_card
from emaae.system.files import read_json, sha256

# Collections are named PREFIX-<id of the W&B run>.
MODEL_PREFIX, RECONSTRUCTIONS_PREFIX = "emaae", "reconstructions"


def log_artifacts(run: Any, folder: Path, wait_s: int) -> None:
    """Log the model and the reconstructions, if the folder holds them.

    wait_s: seconds to wait for each to be stored; an offline run cannot wait.
    """
    for artifact in (model_artifact(folder, run.id), reconstructions_artifact(folder, run.id)):
        if artifact is not None:
            aliases = ["latest"]
            if artifact.type == "model":
                aliases += ["best", f"epoch-{artifact.metadata['epoch']}"]
            logged = run.log_artifact(artifact, aliases=aliases)
            if not run.offline:
                logged.wait(timeout=wait_s)


def model_artifact(folder: Path, run_id: str) -> Any | None:
    """best.pth, model_config.json, metrics.json, curves.json; None when no epoch was selected.

    Metadata: the score, its targets (`aim`) and data, by which models are compared; metrics of the
    selected epoch on the validation split; the knobs that mostly vary; commit, sha256 of best.pth.
    """
    import wandb

    metrics = read.metrics(folder)
    if "select/epoch" not in metrics or not (folder / "best.pth").is_file():
        return None
    config = read_json(folder / "config.json")
    measures = ("fvu", "sparsity", "r_articulators", "dead")
    knobs = (
        "alpha", "alpha_max", "alpha_epochs", "sparse_loss", "slow_coefficient", "seed",
        "inner_size", "n_encoder", "n_decoder", "norm", "activation", "keep_loudness",
    )  # fmt: skip
    metadata = {
        "score": metrics["select/score"],
        "aim": score_description(config),
        "data": read.data_fingerprint(config),
        "epoch": metrics["select/epoch"],
        "status": metrics["status"],
        "schedule": config["schedule"],
        "commit": config["git_commit"],
        "sha256": sha256(folder / "best.pth"),
        # Older runs lack some of these.
        **{name: metrics.get(f"select/{name}") for name in measures},
        **{name: config.get(name) for name in knobs},
    }
    name, card = f"{MODEL_PREFIX}-{run_id}", model_card(folder, run_id)
    artifact = wandb.Artifact(name, type="model", description=card, metadata=metadata)
    for name in ("best.pth", "model_config.json", "metrics.json", "curves.json"):
        if (folder / name).is_file():  # a run that was interrupted has no curves
            add_file(artifact, folder / name, name)
    return artifact


def reconstructions_artifact(folder: Path, run_id: str) -> Any | None:
    """Each epoch with reconstructions as a table, images and npz files; None without any.

    Columns of a table: utterance, channel, r, truth, prediction.
    """
    import wandb

    drawn = read.drawn_epochs(folder / "reconstructions")
    if not drawn:
        return None
    artifact = wandb.Artifact(f"{RECONSTRUCTIONS_PREFIX}-{run_id}", type="reconstruction")
    for epoch in drawn.values():
        table = wandb.Table(columns=["utterance", "channel", "r", "truth", "prediction"])
        for path in sorted(epoch.rglob("*.npz")):
            with np.load(path, allow_pickle=False) as saved:
                both = (saved[name].T.round(4).tolist() for name in ("truth", "prediction"))
                for channel, r, *series in zip(saved["channels"], saved["r"], *both):
                    r = None if np.isnan(r) else float(r)
                    table.add_data(str(saved["name"]), str(channel), r, *series)
        artifact.add(table, f"{epoch.name}/table")
        for path in sorted(p for p in epoch.rglob("*") if p.suffix in (".npz", ".png")):
            add_file(artifact, path, path.relative_to(folder / "reconstructions").as_posix())
    return artifact


def reconstruction_table(folder: Path) -> Any | None:
    """The last reconstruction of one utterance, a row per frame and channel, for W&B's panels.

    Columns: channel, seconds, truth, prediction. None without reconstructions.
    """
    import wandb

    drawn = list(read.drawn_epochs(folder / "reconstructions").values())
    files = sorted(drawn[-1].rglob("*.npz")) if drawn else []
    if not files:
        return None
    table = wandb.Table(columns=["channel", "seconds", "truth", "prediction"])
    with np.load(files[0], allow_pickle=False) as saved:
        truth, prediction = saved["truth"].T, saved["prediction"].T
        for channel, *series in zip(saved["channels"], truth, prediction):
            for t, (x, y) in enumerate(zip(*series)):
                table.add_data(str(channel), t / FRAME_RATE_HZ, float(x), float(y))
    return table


def add_file(artifact: Any, path: Path, name: str) -> None:
    """Add a file, which must not be moved or changed before the artifact is uploaded."""
    # By default W&B copies every file into its cache and its staging area first.
    artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
