"""The best model of a sweep or project: promoting it (naming it `best`) and pulling (copying) it.

A sweep is given by a path on W&B, ENTITY/PROJECT[/SWEEP], or by its local folder DIR. On W&B each
sweep or project has a collection in which the alias `best` marks the best model; locally the best
model is copied to DIR/best. The score in a model's metadata decides, not which promotion came last.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from emaae.metric_table import SCORE, score_description
from emaae.runs import read
from emaae.runs.checkpoint import load_model_file
from emaae.runs.model_card import CARD_FILE, model_card
from emaae.runs.portable import TORCH_FILES, to_torch
from emaae.system.errors import UserError
from emaae.system.files import make_folder, read_json, sha256, write_bytes, write_error, write_json
from emaae.tracking import client
from emaae.tracking.artifacts import MODEL_PREFIX, add_file

# File in the copy of a promoted model; it names the run that the model came from.
PROMOTED_FILE = "promoted.json"
REQUIRED_FILES = ("best.pth", "model_config.json", "metrics.json")
OPTIONAL_FILES = ("curves.json", CARD_FILE, *TORCH_FILES)


class PromotedModel(NamedTuple):
    """A promoted model: where it is, the run that made it, its score on the validation split."""

    ref: str
    run: str
    score: float


def promote(ref: str) -> PromotedModel:
    """Name the model with the lowest score `best`; may be repeated. Raises UserError."""
    if not client.is_local(ref):
        return _promote_on_wandb(ref)
    try:
        return _promote_local(Path(ref))
    except OSError as error:
        raise UserError(write_error(Path(ref, "best"), error)) from None


def pull(ref: str, out: Path) -> Path:
    """Put a model's files into the folder `out`, with best.pth checked by its sha256.

    ref: a local sweep or run folder, or on W&B ENTITY/PROJECT, ENTITY/PROJECT/SWEEP,
    ENTITY/PROJECT/RUN or ENTITY/PROJECT/NAME:ALIAS. Returns `out`. Raises UserError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if client.is_local(ref):
            source, expected = _local_model(Path(ref))
        else:
            source, expected = _download(ref, Path(scratch))
        files = _files(source, ref)
        found = sha256(source / "best.pth")
        if expected is not None and expected != found:
            raise UserError(
                f"{ref}: best.pth has sha256 {found[:12]}..., its metadata say {expected[:12]}...: "
                "the file was changed or cut short; pull again, or promote again"
            )
        if (out / "history.jsonl").exists():
            raise UserError(f"--out {out} is the folder of a run: name another")
        make_folder(out)
        for name in set(OPTIONAL_FILES) - set(files):
            (out / name).unlink(missing_ok=True)  # left by another model
        for name in files:
            write_bytes(out / name, (source / name).read_bytes())
    return out


def _files(folder: Path, ref: str) -> list[str]:
    """The names of the model's files in a folder. Raises UserError when one is missing."""
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{ref} is not the model of an ended run: it lacks {', '.join(missing)}")
    return [*REQUIRED_FILES, *(name for name in OPTIONAL_FILES if (folder / name).is_file())]


# ---- a local sweep


def _promote_local(folder: Path) -> PromotedModel:
    with open(folder / ".promote.lock", "w") as lock:
        # One promotion at a time, where the disk has locks, so that the last one sees all runs.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = folder / ".best"
        shutil.rmtree(scratch, ignore_errors=True)  # of a promotion that was killed
        run, score = read.best_run(folder)
        files = _files(run, str(run))
        chosen = {"run": run.name, "score": score, "sha256": sha256(run / "best.pth")}
        best = folder / "best"
        if best.exists() and not (best / PROMOTED_FILE).is_file():
            raise UserError(
                f"{best} is not a model that was promoted, whose place it takes: rename it"
            )
        weights, promoted = best / "best.pth", read.read_or_empty(best / PROMOTED_FILE)
        is_whole = weights.is_file() and sha256(weights) == chosen["sha256"]
        if promoted != chosen or not is_whole:
            new = scratch / "new"
            new.mkdir(parents=True)
            for name in files:
                shutil.copyfile(run / name, new / name)
            write_json(new / PROMOTED_FILE, chosen)
            (new / CARD_FILE).write_text(model_card(new, run.name), encoding="utf-8")
            to_torch(load_model_file(new / "best.pth"), new)
            # Renamed, so that no reader sees an incomplete folder.
            if best.exists():
                os.replace(best, scratch / "old")
            os.replace(new, best)
            shutil.rmtree(scratch)
    return PromotedModel(str(best), run.name, score)


def _local_model(folder: Path) -> tuple[Path, str | None]:
    """The folder of a model, and the expected sha256 of its best.pth if it was promoted."""
    if (folder / "best" / PROMOTED_FILE).is_file():
        return folder / "best", read_json(folder / "best" / PROMOTED_FILE)["sha256"]
    return folder if (folder / "best.pth").is_file() else read.best_run(folder)[0], None


# ---- on W&B


def _promote_on_wandb(path: str) -> PromotedModel:
    import wandb

    entity, project, sweep = client.split_path(path)
    collection = f"{MODEL_PREFIX}-{sweep or project}"
    target = f"{entity}/{project}/{collection}:best"
    # A simultaneous promotion may have seen fewer runs: repeat until `best` is the best model.
    for _ in range(5):
        source, run_id = _best_on_wandb(path)
        # With a new client, since a client caches answers.
        now = client.get_or_none(client.public_api().artifact, target)
        if now is not None and now.metadata.get("sha256") == source.metadata["sha256"]:
            return PromotedModel(target, now.metadata.get("run", run_id), source.metadata["score"])
        with tempfile.TemporaryDirectory() as scratch:
            folder = client.download(source, Path(scratch))
            card = model_card(folder, run_id)
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
            to_torch(load_model_file(folder / "best.pth"), folder)
            metadata = dict(source.metadata) | {"run": run_id}
            promoted = wandb.Artifact(collection, type="model", description=card, metadata=metadata)
            for name in _files(folder, source.name):
                add_file(promoted, folder / name, name)
            given = {"entity": entity, "project": project, "job_type": "promote"}
            # Without an id it would be the run that the environment names.
            given["id"] = uuid.uuid4().hex[:8]
            with client.user_errors(f"{target} could not be stored on W&B", "promote again"):
                run = client.init(folder, "online", **given, settings={"console": "off"})
                try:
                    run.use_artifact(source)
                    logged = run.log_artifact(promoted, aliases=["best", "latest"])
                    logged.wait(timeout=client.FINISH_TIMEOUT_S)
                finally:
                    run.finish()
    raise UserError(f"{path}: other promotions keep changing {target}; try again after them")


def _best_on_wandb(path: str) -> tuple[Any, str]:
    """The model artifact with the lowest score of a sweep or project, and the id of its run."""
    runs = client.runs(path)
    api = client.public_api()
    models = {}
    for run in runs:
        name = f"{run.entity}/{run.project}/{MODEL_PREFIX}-{run.id}:latest"
        artifact = client.get_or_none(api.artifact, name)
        if artifact is not None and artifact.metadata.get("status") in read.GOOD:
            models[run.id] = artifact
    scored = {i: a.metadata | {SCORE: a.metadata["score"]} for i, a in models.items()}
    best = read.best_by_score(scored)
    if best is None:
        raise UserError(
            f"{path} has no finished run with a model: expected at least one of {len(runs)} runs "
            f"to have logged the artifact {MODEL_PREFIX}-RUN"
        )
    earlier = score_description({})  # of a run that did not store its targets
    kinds = [(one.get("aim", earlier), one.get("data", "")) for one in scored.values()]
    advice = "promote a sweep, ENTITY/PROJECT/SWEEP, whose runs are of one kind"
    read.check_comparable(path, kinds, advice)
    return models[best], best


def _download(ref: str, scratch: Path) -> tuple[Path, str]:
    """The folder of a model from W&B, and the expected sha256 of its best.pth."""
    name = ref = ref.removeprefix("wandb:")
    if ":" not in ref:
        entity, project, last = client.split_path(ref)
        # The third part names a promoted sweep, or a run.
        name = f"{entity}/{project}/{MODEL_PREFIX}-{last or project}:best"
    artifact = client.get_or_none(client.public_api().artifact, name)
    if artifact is None:
        raise UserError(
            f"{ref} names no model on W&B (looked for {name}): for a sweep or a project run "
            "`python -m emaae promote` first"
        )
    if "sha256" not in artifact.metadata:
        raise UserError(f"{name} is not a model that a run logged: its metadata lack sha256")
    return client.download(artifact, scratch), artifact.metadata["sha256"]
