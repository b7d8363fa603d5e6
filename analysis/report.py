"""A report: `python -m analysis.report REF` writes one page that compares runs and opens anywhere.

The page holds everything: text, numbers, drawing code. It asks no network for anything.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from analysis.report_data import collect
from analysis.runs import (
    GOOD,
    Run,
    aims,
    best,
    final,
    groups,
    label,
    number,
    read_runs,
    score,
    split_of,
    text,
    varying,
)
from emaae.data.features import FRAME_RATE_HZ
from emaae.system.errors import UserError, speaking_plainly

HERE = Path(__file__).parent
FILES = ("report.html", "report.css", "report.js", "report_panels.js", "report_run.js")


def page(runs: Sequence[Run], title: str) -> str:
    """The page of these runs as HTML, complete in itself. Raises UserError without plotly."""
    html, css, *js = ((HERE / name).read_text(encoding="utf-8") for name in FILES)
    # A closing tag in a run's name would end the script that holds the data.
    data = json.dumps(collect(runs), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(html).substitute(
        title=escape(title),
        css=css,
        header=header(runs, title),
        footer=footer(runs),
        data=data,
        plotly=plotly_js(),
        js="".join(js),
    )


def plotly_js() -> str:
    """plotly's drawing code. Raises UserError when plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError(
            "the report is drawn by plotly, which is not installed: pip install -r requirements.txt"
        ) from None
    return get_plotlyjs()


# ---- the top of the page, which is text


def header(runs: Sequence[Run], title: str) -> str:
    """What was compared, how the runs ended and which is best."""
    rows = [
        ("Runs", _statuses(runs)),
        ("Compared", _compared(runs)),
        ("Data", _data(runs)),
        ("Numbers", _where(split_of(runs))),
        ("Score", f"asks for {aims(runs)}"),
    ]
    facts = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return (
        f"<h1>{escape(title)}</h1>\n"
        f'<div class="facts"><div class="card"><h2>What was compared</h2><dl>{facts}</dl></div>\n'
        f'<div class="card">{_best_card(runs)}</div></div>\n{_problems(runs)}'
    )


def footer(runs: Sequence[Run]) -> str:
    """Which code made the runs."""
    commits = sorted({str(run.config.get("git_commit")) for run in runs if run.config})
    commits = [commit[:12] for commit in commits if commit != "None"]
    if not commits:
        return "The commit of the runs' code is not known."
    return f"Made by the code at commit {escape(', '.join(commits))}."


def _statuses(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    parts = [f"{n} {status.replace('_', ' ')}" for status, n in counts.most_common()]
    return parts[0] if len(parts) == 1 else f"{len(runs)}: {', '.join(parts)}"


def _compared(runs: Sequence[Run]) -> str:
    parts = []
    for name in varying(runs):
        values = list(dict.fromkeys(text(r.config[name]) for r in runs if name in r.config))
        shown = ", ".join(values) if len(values) <= 8 else f"{len(values)} values"
        parts.append(f"{name}: {shown}")
    if parts:
        return "; ".join(parts)
    return f"one setting, {next(iter(groups(runs)))}"


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
    prints = {json.dumps(data, sort_keys=True) for data in described}
    if len(prints) > 1:
        return f"{sizes} (of the first run; not all runs have the same data, compare with care)"
    return sizes


def _where(split: str) -> str:
    if split == "test":
        return "of the selected weights, on the test split"
    return "of the selected weights, on the validation split (not every run has a test split)"


def _best_card(runs: Sequence[Run]) -> str:
    run = best(runs)
    if run is None:
        return "<h2>Best model</h2><p>No run has ended well yet, so there is none.</p>"
    split = split_of(runs)
    shown = {
        "score": score(run),
        "fvu": final(run, f"{split}/fvu"),
        "sparsity": final(run, f"{split}/sparsity"),
        "r articulators": final(run, f"{split}/r_articulators"),
        "persistence": final(run, "shift/persistence"),
    }
    numbers = "".join(
        f"<div><b>{value:.3g}</b>{name}</div>" for name, value in shown.items() if value == value
    )
    names = [name for name in varying(runs) if name != "seed"]
    what = f"{run.name}: {label(run, names)}, epoch {run.selected.get('epoch', 'unknown')}"
    command = f"model = emaae.load_model({run.ref!r})"
    return (
        f"<h2>Best model</h2><p>{escape(what)}</p>\n"
        f'<div class="numbers">{numbers}</div>\n<pre>{escape(command)}</pre>'
    )


def _problems(runs: Sequence[Run]) -> str:
    troubled = [run for run in runs if run.status not in GOOD]
    if not troubled:
        return ""
    items = "".join(
        f"<li><b>{escape(run.name)}</b> {escape(run.status)}{escape(_why(run))}</li>"
        for run in troubled
    )
    heading = f"{len(troubled)} of {len(runs)} runs did not end well"
    state = " open" if len(troubled) <= 5 else ""
    return (
        f'<details class="card problems"{state}><summary>{heading}</summary><ul>{items}</ul>'
        "</details>"
    )


def _why(run: Run) -> str:
    of = f" of {run.config['epochs']}" if "epochs" in run.config else ""
    reached = f" after epoch {run.history[-1]['epoch']}{of}" if run.history else ""
    reason = f": {run.last_words}" if run.status == "failed" and run.last_words else ""
    return (reached or " before the end of its first epoch") + reason


# ---- the program


def title_of(ref: str) -> str:
    """What a page is called: the question of a local sweep, else the name of what was read."""
    file = Path(ref) / "sweep.yaml"
    if os.path.isfile(file):
        first = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        question = first.lstrip("# ").strip()
        if first.startswith("#") and question:
            return question
    return Path(ref).resolve().name if os.path.isdir(ref) else ref


def main(argv: list[str] | None = None) -> int:
    """Write the page and print where it is; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__)
    parser.add_argument(
        "ref",
        metavar="REF",
        help="a run's or a sweep's folder, an --out_dir, or ENTITY/PROJECT[/SWEEP] on W&B",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="default: REF/report.html, or ./report.html"
    )
    args = parser.parse_args(argv)
    inside = Path(args.ref) if os.path.isdir(args.ref) else Path()
    out = args.out or inside / "report.html"
    html = page(read_runs(args.ref), title_of(args.ref))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    print(f"report: {out}")
    return 0


if __name__ == "__main__":
    with speaking_plainly("python -m analysis.report"):
        sys.exit(main())
