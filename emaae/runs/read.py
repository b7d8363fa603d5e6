"""Reading the folder of a run, for sweeps, promotion, uploads and reports.

A run may be in progress, or have been killed: a broken file counts as missing.
"""

import contextlib
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from emaae.metric_table import SCORE, score_description
from emaae.system.errors import UserError
from emaae.system.files import read_json

K = TypeVar("K")

# GOOD: statuses of runs that ended well. ENDED: statuses after which nothing is left to resume.
GOOD = ("finished", "early_stopped")
ENDED = (*GOOD, "diverged")


def read_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if the file is missing or broken."""
    try:
        return read_json(path)
    except UserError:
        return {}


def metrics(folder: Path) -> dict[str, Any]:
    """The content of metrics.json, `status` included; {} for a run that has not ended."""
    return read_or_empty(folder / "metrics.json")


def final_metrics(folder: Path) -> dict[str, Any]:
    """The defined metrics of a run that has ended; {} for one that can be resumed."""
    found = metrics(folder)
    if found.pop("status", "failed") not in ENDED:
        return {}
    return {name: value for name, value in found.items() if value is not None}


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of history.jsonl in the order of their epochs, without incomplete lines."""
    try:
        text = (folder / "history.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    rows = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, LookupError):
            row = json.loads(line)
            rows[row["epoch"]] = row
    return [rows[epoch] for epoch in sorted(rows)]


def drawn_epochs(folder: Path) -> dict[int, Path]:
    """The folders epoch-N in `folder`, a run's reconstructions: N -> folder, in the order of N."""
    found = {path.name.removeprefix("epoch-"): path for path in folder.glob("epoch-*")}
    return {int(epoch): found[epoch] for epoch in sorted(filter(str.isdecimal, found), key=int)}


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, however short; the copy of a model is not."""
    if any((folder / name).is_file() for name in ("config.json", "history.jsonl")):
        return True
    # A run that failed at its start has metrics.json alone; the copy of a model has both.
    return (folder / "metrics.json").is_file() and not (folder / "best.pth").is_file()


def run_folders(folder: Path) -> list[Path]:
    """The folders of runs in a sweep's folder or in an --out_dir."""
    inside = folder / "runs" if (folder / "runs").is_dir() else folder
    return sorted(path for path in inside.glob("*") if is_run(path))


def holds_runs(folder: Path) -> bool:
    """Whether a folder is a run, contains runs, or holds a promoted or pulled model."""
    has_model = (folder / "best.pth").is_file() or (folder / "best").is_dir()
    return is_run(folder) or has_model or bool(run_folders(folder))


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number; bool does not count as a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bool(abs(value) <= sys.float_info.max)  # math.isfinite raises for very large integers


def score(found: Mapping[str, Any]) -> float | None:
    """The score in the metrics of a run that ended well; None for any other run."""
    value = found.get(SCORE) if found.get("status") in GOOD else None
    return value if is_finite(value) else None


def best_by_score(found: Mapping[K, Mapping[str, Any]]) -> K | None:
    """The run with the lowest score of those that ended well; None if there is no such run.

    found: the metrics of each run. Of equal scores the first run counts.
    """
    scored = {run: value for run, of in found.items() if (value := score(of)) is not None}
    return min(scored, key=lambda run: scored[run], default=None)


def data_fingerprint(config: Mapping[str, Any]) -> str:
    """8 hexadecimal digits that identify the train and val data of a run; "" if unknown.

    The test split does not count, since selection does not use it.
    """
    data = config.get("data")
    splits = [data.get(name) for name in ("train", "val")] if isinstance(data, dict) else []
    prints = [str(of.get("fingerprint")) for of in splits if isinstance(of, dict)]
    return hashlib.blake2b("".join(prints).encode(), digest_size=4).hexdigest() if prints else ""


def best_run(folder: Path) -> tuple[Path, float]:
    """The run with the lowest score below a folder, and its score. Raises UserError."""
    found = {run: metrics(run) for run in run_folders(folder)}
    run = best_by_score(found)
    if run is None:
        raise UserError(
            f"{folder} holds no finished run with a score: expected the folder of a sweep, or an "
            "--out_dir, with at least one run that ended well"
        )
    configs = [read_or_empty(r / "config.json") for r, of in found.items() if score(of) is not None]
    kinds = [(score_description(config), data_fingerprint(config)) for config in configs]
    check_comparable(str(folder), kinds, "put runs of one kind into a folder of their own")
    return run, found[run][SCORE]


def check_comparable(where: str, kinds: Sequence[tuple[str, str]], advice: str) -> None:
    """Raise UserError for scores with different targets, or on different data.

    kinds: targets of each score, see `score_description`, and its data, see
    `data_fingerprint`; advice: what to do.
    """
    wanted, prints = {targets for targets, _ in kinds}, Counter(data for _, data in kinds)
    del prints[""]
    counts = ", ".join(f"{n} of data {name}" for name, n in prints.most_common())
    if len(wanted) > 1:
        why = f"their targets are {' and '.join(sorted(wanted))}"
    elif len(prints) > 1:
        why = f"they are on different data (see data_fingerprint in config.json; {counts})"
    else:
        return
    raise UserError(f"the scores of the runs in {where} are not comparable: {why}; {advice}")
