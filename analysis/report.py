"""A report: `python -m analysis.report REF` writes one page that compares runs and opens anywhere.

The page contains everything: text, numbers, drawing code. It makes no network request.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from analysis.colours import DARK, SCHEDULE_COLOURS
from analysis.fronts import FRONT_HEADS, costs, front_row, schedule_fronts
from analysis.interactive import TEMPLATE
from analysis.panels import styled
from analysis.programs import folder_of, named, program, run_program, writing
from analysis.report_figures import collect
from analysis.runs import (
    GOOD,
    Run,
    aims,
    best,
    groups,
    labels,
    number,
    read_comparable,
    split_of,
    text,
    varying,
)
from emaae.data.features import FRAME_RATE_HZ
from emaae.metric_table import BY_NAME, SUMMARY, SUMMARY_AT_END
from emaae.sweeps.sweep_file import description_of

MAX_VALUES = 12  # of a filter


def page(runs: Sequence[Run], title: str) -> str:
    """The page of these runs as HTML, complete in itself."""
    figures, choices = collect(runs)
    top = best(runs)
    files = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    files.policies["json.dumps_kwargs"] = {"allow_nan": False}  # no browser reads NaN
    return files.get_template("report.html").render(
        title=title,
        runs=runs,
        top=top,
        split=split_of(runs),
        settings=labels(runs),
        color_of={run: style.color for _, style, members in styled(runs) for run in members},
        # Those without a score are the last.
        order=np.argsort([run.score for run in runs], kind="stable").tolist(),
        second=np.sort([r.score for r in runs if r.status in GOOD] + [math.nan] * 2)[1],
        facts={
            "Runs": _statuses(runs),
            "Compared": _compared(runs),
            "Data": _data(runs),
            "Score": f"combines {aims(runs)}",
        },
        problems=[run for run in runs if run.status not in GOOD],
        schedule_colours=SCHEDULE_COLOURS,
        seeds=len(groups(runs)) < len(runs),
        front_heads=FRONT_HEADS,
        fronts=fronts(runs),
        columns=columns(runs),
        commits=sorted({str(run.config.get("git_commit") or "")[:12] for run in runs} - {""}),
        page={
            "runs": [run.name for run in runs],
            "best": runs.index(top) if top else None,
            "filters": filters(runs),
            "figures": figures,
            "choices": choices,
            "template": TEMPLATE.to_plotly_json(),
            "dark": DARK,
        },
        plotly=get_plotlyjs(),
    )


# ---- the summary


def _statuses(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    parts = [f"{n} {status.replace('_', ' ')}" for status, n in counts.most_common()]
    return parts[0] if len(parts) == 1 else f"{len(runs)}: {', '.join(parts)}"


def _compared(runs: Sequence[Run]) -> str:
    parts = []
    for name in varying(runs):
        values = list(dict.fromkeys(_setting(r.config[name])[0] for r in runs if name in r.config))
        shown = ", ".join(values) if len(values) <= 8 else f"{len(values)} values"
        parts.append(f"{name}: {shown}")
    return "; ".join(parts) or f"one setting, {next(iter(groups(runs)))}"


def _data(runs: Sequence[Run]) -> str:
    described = [run.config["data"] for run in runs if isinstance(run.config.get("data"), dict)]
    if not described:
        return "not known"
    first = described[0]
    sizes = ", ".join(
        f"{split} {text(counted['utterances'])} utterances "
        f"({number(counted['frames']) / FRAME_RATE_HZ / 60:.1f} min)"
        for split, counted in first.items()
        if isinstance(counted, dict) and {"utterances", "frames"} <= set(counted)
    )
    if any(data != first for data in described):
        return f"{sizes} (of the first run; others have other data, so compare with care)"
    return sizes


# ---- filters and tables


def filters(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A knob's name, its values as texts, which of them each run has (of); the seed is the last."""
    found = []
    for name in dict.fromkeys(["schedule", *varying(runs)]):
        cells = [_setting(run.knob(name)) for run in runs]
        # Numbers by size, then words.
        ordered = sorted(cells, key=lambda c: (0, c[1]) if isinstance(c[1], float) else (1, c[0]))
        distinct = list(dict.fromkeys(text for text, _ in ordered))
        if 1 < len(distinct) <= MAX_VALUES:
            of = [distinct.index(text) for text, _ in cells]
            found.append({"name": name, "values": distinct, "of": of})
    return found


Cell = tuple[str, float | str | None]  # text; the number by which it sorts, "" for none, if any


class Column(NamedTuple):
    """A column of the table of runs: its heading, what that means, and a cell for each run."""

    name: str
    words: str
    cells: Sequence[Cell]


def columns(runs: Sequence[Run]) -> list[Column]:
    """What differs between the runs and their scores."""
    split = split_of(runs)
    found = [Column(name, "", [_setting(r.knob(name)) for r in runs]) for name in varying(runs)]
    found.append(Column("status", "", [(run.status.replace("_", " "), None) for run in runs]))
    names = {"epoch": "select/epoch", "score": "select/score"}
    for name in (*SUMMARY, *SUMMARY_AT_END):
        names.setdefault(name, name if name in BY_NAME else f"{split}/{name}")
    for name, metric in names.items():
        values = [run.metric(metric) for run in runs]
        if metric.startswith("select/") or np.isfinite(values).any():
            known = BY_NAME[metric]
            words = known.short_description + (
                f"; {known.better} is better" if known.better else ""
            )
            heading = re.sub("[/_]", " ", name.removeprefix("shift/"))
            found.append(Column(heading, words, _numbers(values)))
    return found


def fronts(runs: Sequence[Run]) -> list[tuple[Cell, ...]]:
    """Rows of `FRONT_HEADS` for each schedule, or for all runs; the best first."""
    rows = schedule_fronts(runs)
    if len(rows) > 1:
        rows.append(front_row("all runs", costs(runs, split_of(runs))))
    names, *values = zip(*rows) if rows else ([],)
    return list(zip([(name, None) for name in names], *map(_numbers, values)))


def _setting(value: Any) -> Cell:
    if value is None:
        return "–", ""
    return text(value), None if isinstance(value, bool | str) else number(value)


def _numbers(values: Sequence[float]) -> list[Cell]:
    """As many decimals in all cells of a column as give the largest number four digits."""
    known = np.abs([value for value in values if np.isfinite(value)])
    decimals = 0
    if (known % 1).any():
        decimals = max(0, 3 - math.floor(math.log10(known.max())))
    return [(f"{v:.{decimals}f}", v) if np.isfinite(v) else ("–", "") for v in values]


# ---- the program


def title_of(ref: str) -> str:
    """The title of a page: the question of a local sweep, else the name of what was read."""
    if not os.path.isdir(ref):
        return ref
    file = Path(ref) / "sweep.yaml"
    return (description_of(file) if file.is_file() else "") or Path(ref).resolve().name


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and print where it is."""
    parser = program("report", __doc__, "ref")
    out_help = "(default: REF/report.html; ./report.html for runs on W&B)"
    parser.add_argument("--out", type=Path, metavar="FILE.html", help=out_help)
    args = parser.parse_args(argv)
    out = named(args.out or folder_of(args.ref) / "report.html", ".html")
    html = page(read_comparable(args.ref), title_of(args.ref))
    with writing(out):
        out.write_text(html, encoding="utf-8")
    print(f"report: {out}")


if __name__ == "__main__":
    run_program("report", main)
