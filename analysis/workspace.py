"""Pages on W&B that compare alpha schedules: `python -m analysis.workspace ENTITY/PROJECT[/SWEEP]`.

Of a project it saves a new view of its workspace, of a sweep a W&B Report with the same panels of
that sweep's runs; `--dry-run` prints it as JSON instead (of a project without a network, of a sweep
W&B is asked for the project). The metrics are those that runs log, by the names in docs/metrics.md.
"""

import json
from collections.abc import Sequence
from typing import Any

from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports import v2 as wr

from analysis.programs import program, run_program
from emaae.system.errors import UserError, reason

NAME = "alpha schedules"
GROUP = "schedule"  # of the config: what alpha really did


def line(*y: str, x: str = "epoch", title: str | None = None, log: bool = False) -> Any:
    """A panel of metrics over another, each schedule as the mean of its runs in their range."""
    return wr.LinePlot(
        title=title or ", ".join(y),
        x=x,
        y=list(y),
        log_y=log or None,
        groupby=wr.Config(GROUP),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        smoothing_type="none",
        max_runs_to_show=100,
    )


def scatter(x: str, y: str) -> Any:
    """A panel of two final metrics, a point per run."""
    title = f"{y} against {x}"
    return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))


def sections() -> dict[str, list[Any]]:
    """The panels of each section."""
    similarity = ("shift/self_similarity", "shift/input_self_similarity")
    lowpass = ("lowpass/fvu", "lowpass/input_fvu")
    over_cutoff = "fvu after smoothing, over cutoff (fraction of Nyquist)"
    knobs = ("schedule", "sparse_loss", "alpha", "alpha_max", "inner_size", "n_encoder", "seed")
    ends = ("test/sparsity", "shift/persistence", "test/fvu", "select/score")
    axes: list[Any] = [*map(wr.Config, knobs), *map(wr.SummaryMetric, ends)]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
    return {
        "Alpha over epochs": [
            line("alpha"),
            line("lambda_eff", log=True),
            line("train/loss", "val/loss", log=True),
            line("val/fvu", log=True),
            line("val/sparsity"),
            line("val/score"),
            line("val/self_similarity_20ms", "val/self_similarity_80ms"),
            line("val/participation_ratio"),
            line("val/noise_gain"),
        ],
        "What alpha costs": [
            scatter("test/sparsity", "test/fvu"),
            scatter("shift/persistence", "test/sparsity"),
            scatter("select/alpha", "test/mse"),
        ],
        "Shift tolerance of the selected weights": [
            line(*similarity, x="shift/lag_ms", title="self-similarity over lag (ms)"),
            line(*lowpass, x="lowpass/cutoff", title=over_cutoff, log=True),
            line("shift/gain", x="shift/shift_ms", title="gain over shift (ms)"),
        ],
        "Which settings matter": [
            wr.ParallelCoordinatesPlot(title="settings and what came of them", columns=columns),
            wr.ParameterImportancePlot(with_respect_to="select/score"),
        ],
        "Reconstructions": [wr.MediaBrowser(media_keys=["reconstructions"], num_columns=1)],
    }


def workspace(entity: str, project: str) -> Any:
    """The view, a `wandb_workspaces.workspaces.Workspace`; nothing is sent."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True, pinned=i == 0)
            for i, (name, panels) in enumerate(sections().items())
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", smoothing_type="none", max_runs=100),
        runset_settings=ws.RunsetSettings(
            # Promoting a model is a run on W&B too.
            filters=expr.And(expr.Metric("JobType") == "train"),
            order=[expr.Ordering(expr.Summary("select/score"), ascending=True)],
            pinned_columns=["summary:select/score", "summary:select/alpha", "summary:status"],
        ),
    )


def report(entity: str, project: str, sweep: str) -> Any:
    """A W&B Report of a sweep's runs, a `wandb_workspaces.reports.v2.Report`; nothing is sent."""
    where: dict[str, Any] = {"entity": entity, "project": project}
    trained = [expr.Metric("Sweep") == sweep, expr.Metric("JobType") == "train"]
    blocks: list[Any] = [
        wr.P(f"The runs of sweep {sweep}. The best model is named by"),
        wr.CodeBlock(f"python -m emaae promote {entity}/{project}/{sweep}"),
    ]
    for name, panels in sections().items():
        runs = wr.Runset(**where, name=sweep, filters=trained)
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(**where, title=f"Sweep {sweep}", width="fluid", blocks=blocks)


def as_json(view: Any) -> dict[str, Any]:
    """A view as it would be sent, validated, without its random ids."""
    return without_ids(view._to_model().model_dump_json(by_alias=True, exclude_none=True))


def without_ids(text: str) -> Any:
    """What JSON holds less its ids, which are drawn at random."""
    ids = ("id", "__id__")
    return json.loads(text, object_hook=lambda of: {k: of[k] for k in of if k not in ids})


def main(argv: Sequence[str] | None = None) -> None:
    """Save the view or the report, or print it."""
    parser = program("workspace", __doc__)
    parser.add_argument("path", metavar="ENTITY/PROJECT[/SWEEP]")
    parser.add_argument("--dry-run", action="store_true", help="print it as JSON and send nothing")
    args = parser.parse_args(argv)
    parts = args.path.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(
            f"{args.path!r} is no project on W&B: expected ENTITY/PROJECT or ENTITY/PROJECT/SWEEP"
        )
    try:
        view = workspace(*parts) if len(parts) == 2 else report(*parts)
        print(json.dumps(as_json(view), indent=2) if args.dry_run else view.save().url)
    except Exception as error:  # whatever the network and the server do
        raise UserError(
            f"W&B did not {'show' if args.dry_run else 'save'} the page of {args.path} "
            f"({reason(error)}): log in with `wandb login`, and check the path"
        ) from None


if __name__ == "__main__":
    run_program("workspace", main)
