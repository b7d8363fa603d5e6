"""A report: `python -m analysis.report REF` writes one page that compares runs and opens anywhere.

The page holds everything: text, numbers, drawing code. It asks no network for anything.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from analysis.colours import DARK, SCHEDULE_COLOURS
from analysis.fronts import FRONT_HEADS, costs, front_row, schedule_fronts
from analysis.interactive import TEMPLATE
from analysis.panels import looked
from analysis.programs import folder_of, program, writing
from analysis.report_figures import SECTIONS, Shown, collect, shown_in_full
from analysis.runs import (
    GOOD,
    Run,
    aims,
    best,
    groups,
    labels,
    number,
    read_comparable,
    score,
    split_of,
    text,
    varying,
)
from emaae.data.features import FRAME_RATE_HZ
from emaae.metric_table import BY_NAME, SUMMARY, SUMMARY_AT_END
from emaae.sweeps.sweep_file import description_of
from emaae.system.errors import reporting_errors
from emaae.system.files import expand_home

HERE = Path(__file__).parent
MAX_VALUES = 12  # of a filter
WHERE = {
    "test": "of the selected weights, on the test split",
    "val": "of the selected weights, on the validation split (not every run has a test split)",
}


def page(runs: Sequence[Run], title: str) -> str:
    """The page of these runs as HTML, complete in itself."""
    html, css, js = (
        (HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    figures, details = collect(runs)
    top = best(runs)
    content = {
        "runs": [run.name for run in runs],
        "best": runs.index(top) if top else None,
        "filters": [filter_ | {"name": name} for name, filter_ in filters(runs).items()],
        "figures": figures,
        "details": details,
        "template": TEMPLATE.to_plotly_json(),
        "dark": DARK,
    }
    first, *others = SECTIONS
    ids = {name: _id(name) for name in ("Summary", first, "Runs", *others)}
    return Template(html).substitute(
        title=escape(title),
        css=css,
        contents="".join(f'<a href="#{at}">{name}</a>' for name, at in ids.items()),
        body=header(runs, title) + toolbar(runs) + sections(runs),
        footer=footer(runs),
        # A closing tag in a run's name would end the script that holds the data.
        page=json.dumps(content, allow_nan=False).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
        js=js,
    )


# ---- the answer


def header(runs: Sequence[Run], title: str) -> str:
    """Which run to take and what it gives up, what was compared, and how the runs ended."""
    rows = [
        ("Runs", _statuses(runs)),
        ("Compared", _compared(runs)),
        ("Data", _data(runs)),
        ("Numbers", WHERE[split_of(runs)]),
        ("Score", f"combines {aims(runs)}"),
    ]
    facts = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return (
        f'<header id="summary">\n<h1>{escape(title)}</h1>\n'
        f'<div class="facts"><div class="card">{_answer(runs)}</div>\n'
        f'<div class="card"><h2>What was compared</h2><dl>{facts}</dl></div></div>\n'
        f"{_problems(runs)}</header>\n"
    )


def _answer(runs: Sequence[Run]) -> str:
    run = best(runs)
    if run is None:
        return "<h2>Which run to take</h2><p>No run has ended well yet.</p>"
    split = split_of(runs)
    epoch = run.selected.get("epoch", "unknown")
    what = f"{run.name}: {labels(runs)[run]}, epoch {epoch}"
    rows = [
        ("fvu", f"{split}/fvu", "of the variance is not explained; lower is better"),
        _asked(run, "zeros of live units", f"{split}/live_sparsity", "target_sparsity"),
        _asked(run, "persistence within", "shift/persistence_within", "target_persistence"),
        ("mean r of the articulators", f"{split}/r_articulators", "1 is perfect"),
        ("persistence", "shift/persistence", "half-life of the encoding / that of the input"),
    ]
    shown = "".join(
        f"<div><b>{value:.3g}</b>{name}<small>{escape(said)}</small></div>"
        for name, metric, said in rows
        if (value := run.metric(metric)) == value
    )
    others = [score(other) for other in runs if other is not run and other.status in GOOD]
    lead = min((value for value in others if value == value), default=None)
    than = "" if lead is None else f"; the second best has {lead:.4g}"
    return (
        f"<h2>Which run to take</h2><p><strong>{escape(what)}</strong>, with the lowest validation "
        f'score, {score(run):.4g}{than}.</p>\n<div class="numbers">{shown}</div>\n'
        f"<pre>{escape(f'model = emaae.load_model({run.ref!r})')}</pre>"
    )


def _asked(run: Run, name: str, metric: str, knob: str) -> tuple[str, str, str]:
    """A number of the best run beside what its score asks for."""
    target, value = number(run.config.get(knob)), run.metric(metric)
    if target != target or not target:
        return name, metric, "not asked for"
    met = f"target {target:g}, met" if value >= target else f"{target - value:.2g} below {target:g}"
    return name, metric, met


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
    summary = f"<summary>{heading}</summary>"
    return f'<details class="card problems"{state}>{summary}<ul>{items}</ul></details>'


def _why(run: Run) -> str:
    of = f" of {run.config['epochs']}" if "epochs" in run.config else ""
    reached = f" after epoch {run.history[-1]['epoch']}{of}" if run.history else ""
    reason = f": {run.last_error}" if run.status == "failed" and run.last_error else ""
    return (reached or " before the end of its first epoch") + reason


def footer(runs: Sequence[Run]) -> str:
    """Which code made the runs."""
    commits = sorted({str(run.config.get("git_commit") or "")[:12] for run in runs} - {""})
    if not commits:
        return "The commit of the runs' code is not known."
    return f"Made by the code at commit {escape(', '.join(commits))}."


# ---- filters and tables


def filters(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """By knob: its values as texts, and which of them each run has (of); the seed is the last."""
    found = {}
    for name in dict.fromkeys(["schedule", *varying(runs)]):
        values = [text(run.knob(name)) for run in runs]
        distinct = sorted(set(values), key=_order)
        if 1 < len(distinct) <= MAX_VALUES:
            found[name] = {"values": distinct, "of": [distinct.index(value) for value in values]}
    return found


def toolbar(runs: Sequence[Run]) -> str:
    """The buttons that say which runs are shown, and whether seeds are."""
    sets = []
    for f, (name, filter_) in enumerate(filters(runs).items()):
        colours = SCHEDULE_COLOURS if name == "schedule" else {}
        buttons = "".join(
            f'<button class="chip" data-filter="{f}" data-value="{i}" title="click: show or hide; '
            'double-click or Shift+click: show only this">'
            f"{_dot(colours.get(value))}{escape(value)}</button>"
            for i, value in enumerate(filter_["values"])
        )
        sets.append(f"<fieldset><legend>{escape(name)}</legend>{buttons}</fieldset>")
    if len(groups(runs)) < len(runs):
        modes = (("yes", "mean over seeds, band from min to max"), ("no", "every run"))
        buttons = "".join(
            f'<button class="chip" data-means="{value}">{words}</button>' for value, words in modes
        )
        sets.append(f"<fieldset><legend>lines</legend>{buttons}</fieldset>")
    bar = '<div id="filters" role="toolbar" aria-label="Which runs are shown">'
    return f"{bar}{''.join(sets)}</div>\n"


def table(runs: Sequence[Run]) -> str:
    """The table of runs: what differs between them and their scores, best first."""
    split, knobs = split_of(runs), varying(runs)
    known = [name for name in (*SUMMARY, *SUMMARY_AT_END) if name != "score"]
    full = {name: name if name in BY_NAME else f"{split}/{name}" for name in known}
    full = {
        name: at for name, at in full.items() if any(r.metric(at) == r.metric(at) for r in runs)
    }
    heads = [("run", ""), *((knob, "") for knob in knobs), ("status", "")]
    heads += [("epoch", "whose weights were selected"), ("score", "validation; lower is better")]
    heads += [(_heading(name), _words(at)) for name, at in full.items()]
    sort = {"score": ' aria-sort="ascending"'}
    head = "".join(
        f'<th title="{escape(title)}"{sort.get(name, "")}><button>{escape(name)}</button></th>'
        for name, title in heads
    )
    top = best(runs)
    colour = {run: look.color for _, look, members in looked(runs) for run in members}
    body = ""
    for i in np.argsort([score(run) for run in runs], kind="stable"):  # without a score the last
        run = runs[i]
        star = " ★" if run is top else ""
        bad = "" if run.status in GOOD else " bad"
        numbers = [run.metric(at) for at in ("select/epoch", "select/score", *full.values())]
        body += (
            f'<tr data-run="{i}">'
            f"<td><button>{_dot(colour[run])}{escape(run.name)}{star}</button></td>"
            f"{''.join(_cell(run.knob(name)) for name in knobs)}"
            f'<td class="left{bad}">{escape(run.status.replace("_", " "))}</td>'
            f"{''.join(map(_cell, numbers))}</tr>"
        )
    return (
        f'<div id="table" tabindex="0" role="region" aria-label="Table of runs"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table>"
        '<p class="note" id="none" hidden>No run is shown: the filters leave none.</p></div>\n'
    )


def fronts(runs: Sequence[Run]) -> str:
    """The front of each schedule, or of all runs, in numbers; the best first."""
    rows = schedule_fronts(runs)
    if not rows:
        return '<p class="note">No run has ended well yet.</p>'
    if len(rows) > 1:
        rows.append(front_row("all runs", costs(runs, split_of(runs))))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(map(_cell, values))}</tr>" for name, *values in rows
    )
    head = "".join(f"<th>{name}</th>" for name in FRONT_HEADS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def sections(runs: Sequence[Run]) -> str:
    """The figures' places, section by section."""
    found = []
    for name, shown in SECTIONS.items():
        figures = "".join(_figure(one) for one in shown)
        if name == "Trade-off":
            figures += (
                '<figure id="fronts" class="wide"><figcaption><h3>Fronts in numbers</h3>'
                "Hypervolume is the area of fvu and 1 - sparsity that the front dominates below "
                "(1, 1), from 0 to 1: higher is better. The fvu at a sparsity is interpolated "
                "between the runs of the front; a dash: it does not reach there.</figcaption>"
                f"{fronts(runs)}</figure>"
            )
        above = _choice(runs) if name == "One run" else ""
        found.append(
            f'<section id="{_id(name)}"><h2>{name}</h2>{above}'
            f'<div class="panels">{figures}</div></section>\n'
        )
        if name == "Trade-off":
            found.append(
                '<section id="runs"><h2>Runs</h2><p>The settings that differ, and the main '
                "results; ★ is the best. A heading sorts; a row is drawn bold in every figure and "
                f'shown under <a href="#one-run">One run</a>.</p>\n{table(runs)}</section>\n'
            )
    return "".join(found)


def _figure(one: Shown) -> str:
    wide, of = ' class="wide"' if one.wide else "", f' data-of="{one.of}"' if one.of else ""
    return (
        f'<figure id="{one.name}" data-figure="{one.name}"{of}{wide}><figcaption>'
        f"<h3>{one.heading}</h3>{one.caption}</figcaption>"
        f'<div class="plot" role="group" tabindex="0" aria-label="{one.heading}"></div></figure>\n'
    )


def _choice(runs: Sequence[Run]) -> str:
    settings, full = labels(runs), shown_in_full(runs)
    options = "".join(
        f'<option value="{i}">{"● " if run in full else ""}'
        f"{escape(run.name)}: {escape(settings[run])}, seed {run.config.get('seed')}</option>"
        for i, run in enumerate(runs)
    )
    return (
        f'<div class="choice"><label>Run <select id="choose-run">{options}</select></label>'
        '<label>Utterance <select id="choose-utterance"></select></label>'
        '<label>Unit <select id="choose-unit"></select></label></div>'
    )


def _dot(color: str | None) -> str:
    return f'<span class="dot" style="background:{color}"></span>' if color else ""


def _cell(value: Any) -> str:
    if value is None or value != value:
        return '<td data-value="">–</td>'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f'<td class="left">{escape(str(value))}</td>'
    return f'<td data-value="{value!r}">{value:.4g}</td>'


def _heading(name: str) -> str:
    return name.removeprefix("shift/").replace("/", " ").replace("_", " ")


def _words(name: str) -> str:
    metric = BY_NAME[name]
    return metric.short_description + (f"; {metric.better} is better" if metric.better else "")


def _id(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


def _order(value: str) -> tuple:
    """Numbers by size, then words."""
    try:
        return 0, float(value)
    except ValueError:
        return 1, value


# ---- the program


def title_of(ref: str) -> str:
    """The title of a page: the question of a local sweep, else the name of what was read."""
    if not os.path.isdir(ref):
        return ref
    file = Path(ref) / "sweep.yaml"
    return (description_of(file) if file.is_file() else "") or Path(ref).resolve().name


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and print where it is."""
    parser = program("report", __doc__)
    parser.add_argument(
        "ref",
        metavar="REF",
        help="a run's or a sweep's folder, an --out_dir, or ENTITY/PROJECT[/SWEEP] on W&B",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="default: REF/report.html, or ./report.html"
    )
    args = expand_home(parser.parse_args(argv))
    out = args.out or folder_of(args.ref) / "report.html"
    html = page(read_comparable(args.ref), title_of(args.ref))
    with writing(out):
        out.write_text(html, encoding="utf-8")
    print(f"report: {out}")


if __name__ == "__main__":
    with reporting_errors("python -m analysis.report"):
        main()
