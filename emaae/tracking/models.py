"""The best model of a sweep or project: promoting it, and getting it to where it is used.

A sweep is a path on W&B, ENTITY/PROJECT[/SWEEP], or the folder of a local one. On W&B the best
model stands in one collection per sweep or project under the alias `best`; locally it is copied to
DIR/best. Either way it is chosen by the score in its own metadata, never by who came last.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emaae.metric_table import SCORE
from emaae.metrics import score_description
from emaae.runs import read
from emaae.runs.checkpoint import load_model_file
from emaae.runs.model_card import CARD_FILE, model_card
from emaae.runs.portable import TORCH_FILES, to_torch
from emaae.runs.read import PROMOTED_FILE
from emaae.system.errors import UserError
from emaae.system.files import make_folder, read_json, sha256, write_json
from emaae.tracking.artifacts import MODEL_PREFIX
from emaae.tracking.client import get_or_none, is_local, one_line, public_api, split_path

REQUIRED_FILES = ("best.pth", "model_config.json", "metrics.json")
OPTIONAL_FILES = ("curves.json", CARD_FILE, *TORCH_FILES)  # a model may lack them


@dataclass(frozen=True)
class PromotedModel:
    """A model that was chosen: where it is, which run made it, its score on validation."""

    ref: str
    run: str
    score: float


def promote(ref: str) -> PromotedModel:
    """Give the model with the lowest score the name `best`; may be repeated. Raises UserError."""
    return _promote_local(Path(ref)) if is_local(ref) else _promote_on_wandb(ref)


def pull(ref: str, out: Path) -> Path:
    """Put a model's files into the folder `out`, checked by their sha256; returns `out`.

    ref: a local sweep or run folder, or on W&B ENTITY/PROJECT, ENTITY/PROJECT/SWEEP,
    ENTITY/PROJECT/RUN or ENTITY/PROJECT/NAME:ALIAS. Raises UserError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if is_local(ref):
            source, expected = _local_model(Path(ref))
        else:
            source, expected = _download(ref, Path(scratch))
        found = sha256(source / "best.pth")
        if found != expected:
            raise UserError(
                f"{ref}: best.pth has sha256 {found[:12]}..., its metadata say {expected[:12]}...: "
                "the file was changed or cut short; pull again, or promote again"
            )
        make_folder(out)
        for name in OPTIONAL_FILES:
            (out / name).unlink(missing_ok=True)  # of another model
        for name in _files(source):
            shutil.copyfile(source / name, out / name)
    return out


def _files(folder: Path) -> list[str]:
    """The files of the model in a folder."""
    return [*REQUIRED_FILES, *(name for name in OPTIONAL_FILES if (folder / name).is_file())]


# ---- a local sweep


def _promote_local(folder: Path) -> PromotedModel:
    with open(folder / ".promote.lock", "w") as lock:
        # One after the other, where the disk has locks: the last one has seen all runs.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        run, score = read.best_run(folder)
        chosen = {"run": run.name, "score": score, "sha256": sha256(run / "best.pth")}
        best = folder / "best"
        if not (best / PROMOTED_FILE).is_file() or read_json(best / PROMOTED_FILE) != chosen:
            beside = Path(tempfile.mkdtemp(prefix=".best-", dir=folder))
            for name in _files(run):
                shutil.copyfile(run / name, beside / name)
            write_json(beside / PROMOTED_FILE, chosen)
            (beside / CARD_FILE).write_text(model_card(beside, run.name), encoding="utf-8")
            to_torch(load_model_file(beside / "best.pth"), beside)
            # Renamed into place, so that no reader sees half of it.
            old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder)) / "best"
            if best.exists():
                os.replace(best, old)
            os.replace(beside, best)
            shutil.rmtree(old.parent)
    return PromotedModel(str(best), run.name, score)


def _local_model(folder: Path) -> tuple[Path, str]:
    if (folder / "best" / PROMOTED_FILE).is_file():
        return folder / "best", read_json(folder / "best" / PROMOTED_FILE)["sha256"]
    run = folder if (folder / "best.pth").is_file() else read.best_run(folder)[0]
    return run, sha256(run / "best.pth")


# ---- on W&B


def _promote_on_wandb(path: str) -> PromotedModel:
    import wandb

    entity, project, sweep = split_path(path)
    api = public_api()
    collection = f"{MODEL_PREFIX}-{sweep or project}"
    target = f"{entity}/{project}/{collection}:best"
    # Another promotion may have seen fewer runs at the same moment: repeat until the best stays.
    for _ in range(5):
        source, run_id = _best_on_wandb(api, path)
        now = get_or_none(api.artifact, target)
        if now is not None and now.metadata.get("sha256") == source.metadata["sha256"]:
            return PromotedModel(target, now.metadata.get("run", run_id), source.metadata["score"])
        with tempfile.TemporaryDirectory() as scratch:
            files = Path(source.download(root=scratch))
            card = model_card(files, run_id)
            (files / CARD_FILE).write_text(card, encoding="utf-8")
            to_torch(load_model_file(files / "best.pth"), files)
            metadata = dict(source.metadata) | {"run": run_id}
            promoted = wandb.Artifact(collection, type="model", description=card, metadata=metadata)
            for name in _files(files):
                promoted.add_file(str(files / name), name=name, skip_cache=True)
            settings = wandb.Settings(silent=True, console="off")
            with wandb.init(
                entity=entity, project=project, job_type="promote", dir=scratch, settings=settings
            ) as run:
                run.use_artifact(source)
                run.log_artifact(promoted, aliases=["best", "latest"]).wait(timeout=300)
        api = public_api()  # the old one remembers what it has seen
    raise UserError(
        f"{path}: other promotions keep changing {target}; try again when they are done"
    )


def _best_on_wandb(api: Any, path: str) -> tuple[Any, str]:
    """The model artifact with the lowest score of a sweep or project, and the run that made it."""
    import wandb

    entity, project, sweep = split_path(path)
    where = path.strip("/")
    try:
        runs = list(api.sweep(where).runs if sweep else api.runs(where))
    except (wandb.Error, ValueError) as error:
        raise UserError(f"{where} is not on W&B ({one_line(error)}): check the path") from None
    models = {}
    for run in sorted(runs, key=lambda run: run.id):
        artifact = get_or_none(api.artifact, f"{entity}/{project}/{MODEL_PREFIX}-{run.id}:latest")
        if artifact is not None and artifact.metadata.get("status") in read.GOOD:
            models[run.id] = artifact
    best = read.best_by_score(
        {i: a.metadata | {SCORE: a.metadata["score"]} for i, a in models.items()}
    )
    if best is None:
        raise UserError(
            f"{where} has no finished run with a model: expected at least one of {len(runs)} runs "
            f"to have logged the artifact {MODEL_PREFIX}-RUN"
        )
    metadata = [artifact.metadata for artifact in models.values()]
    read.check_comparable(
        where,
        (one.get("aim", score_description({})) for one in metadata),
        (one.get("data", "") for one in metadata),
        "promote a sweep, ENTITY/PROJECT/SWEEP, whose runs are of one kind",
    )
    return models[best], best


def _download(ref: str, scratch: Path) -> tuple[Path, str]:
    if ":" in ref:
        name = ref
    else:
        entity, project, last = split_path(ref)
        # A last word names a sweep that was promoted, or a run.
        name = f"{entity}/{project}/{MODEL_PREFIX}-{last or project}:best"
    artifact = get_or_none(public_api().artifact, name)
    if artifact is None:
        raise UserError(
            f"{ref} names no model on W&B (looked for {name}): for a sweep or a project run "
            "`python -m emaae promote` first"
        )
    source = Path(artifact.download(root=str(scratch)))
    missing = [file for file in REQUIRED_FILES if not (source / file).is_file()]
    if missing or "sha256" not in artifact.metadata:
        lacks = ", ".join(missing) or "its sha256"
        raise UserError(f"{name} is not a model that a run logged: it lacks {lacks}")
    return source, artifact.metadata["sha256"]
