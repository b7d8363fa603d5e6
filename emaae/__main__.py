"""`python -m emaae VERB`: prepare data, run sweeps, use trained models."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from emaae.command_line import LOSS_KNOBS, METAVARS
from emaae.config import ENCODING_FORMATS, KNOBS
from emaae.knobs import WITHIN, Knob
from emaae.system.cpus import n_cpus
from emaae.system.errors import ArgumentParser, UserError, one_line, reporting_errors
from emaae.system.files import find_packaged, make_folder, write_json

# Knobs of a run that are also flags of `evaluate`.
EVALUATE_KNOBS = (
    "bucket", "recursive", "on_bad_file", "cache_dir", "batch_sz", "target_sparsity",
    "target_persistence", "device",
)  # fmt: skip

Verb = Callable[[argparse.Namespace], int | None]
Argument = tuple[str, dict[str, Any]]
PARSER = ArgumentParser(prog="python -m emaae", description=__doc__)
VERBS = PARSER.add_subparsers(dest="verb", metavar="VERB", required=True)


def argument(name: str, help: str = "", **options: Any) -> Argument:
    """An argument of a verb; options: further arguments of `ArgumentParser.add_argument`."""
    if name in ("--out", "--out_dir"):
        options["type"] = Knob(name.lstrip("-"), str).read  # "" is no path
    return name, {"help": help, **options}


def number(name: str, help: str, kind: type = int, **options: Any) -> Argument:
    """A number as an argument; options: limits, as those of knobs, and those of `argument`."""
    limits = {word: options.pop(word) for word in WITHIN if word in options}
    read = Knob(name.lstrip("-"), kind, limits=limits).read
    return argument(name, help, type=read, **{"metavar": METAVARS[kind]} | options)


def knob(name: str) -> Argument:
    """A flag of `train.py` as a flag of a verb."""
    of_run = KNOBS[name]
    if of_run.kind is bool:
        return argument(f"--{name}", of_run.text, action="store_true")
    default = "that of the run" if name in LOSS_KNOBS else of_run.default
    text = of_run.text if default is None else f"{of_run.text} (default: {default})"
    values = {"choices": of_run.choices} if of_run.choices else {"metavar": METAVARS[of_run.kind]}
    return argument(f"--{name}", text, **values)


def verb(*arguments: Argument, **options: Any) -> Callable[[Verb], Verb]:
    """A decorator: registers the function as the verb of its name, its docstring as the help."""

    def declared(run: Verb) -> Verb:
        name = run.__name__.replace("_", "-")
        parser = VERBS.add_parser(name, help=run.__doc__, description=run.__doc__, **options)
        parser.set_defaults(run=run)
        for flag, more in arguments:
            parser.add_argument(flag, **more)
        return run

    return declared


MODEL_ARGUMENT = argument(
    "--model",
    "run folder, .pth beside its model_config.json, wandb:ENTITY/PROJECT/NAME:ALIAS",
    required=True,
    metavar="REF",
)
FEATURES_ARGUMENT = argument(
    "--features", "feature tree, or a prefix in --bucket", required=True, metavar="DIR"
)
ENCODINGS_ARGUMENT = argument("--encodings", "tree that encode wrote", required=True, metavar="DIR")


@verb(
    argument("--out", "directory for train/, val/ and test/", required=True),
    number("--seed", "sets speakers and words (default: 0)", default=0, at_least=0),
    argument(
        "--like",
        "demo: 64, 28 and 28 short utterances; librispeech-100h: the numbers of utterances and "
        "speakers, and the durations, of train-clean-100, dev-clean and test-clean (default: demo)",
        choices=("demo", "librispeech-100h"),
        default="demo",
    ),
    number("--n_utterances", "in each split (default: see --like)", at_least=1, at_most=100_000),
    number(
        "--scale",
        "factor on LibriSpeech's durations (default: 0.3 for demo, 1 for librispeech-100h)",
        float,
        above=0,
    ),
    number("--jobs", "processes (default: 1 for demo, all cores for librispeech-100h)", at_least=1),
)
def demo_data(args: argparse.Namespace) -> None:
    """Write the generated demo data as a feature tree."""
    from emaae.data.demo import write_tree
    from emaae.data.features import FRAME_RATE_HZ

    jobs = args.jobs or (1 if args.like == "demo" else n_cpus())
    make_folder(Path(args.out))
    counts = write_tree(args.out, args.seed, args.n_utterances, args.scale, args.like, jobs)
    for split, n in counts.items():
        size = f"{n['utterances']} utterances, {n['speakers']} speakers"
        print(f"{args.out}/{split}: {size}, {n['frames'] / FRAME_RATE_HZ / 60:.1f} minutes")


@verb(
    argument("dirs", "a feature tree, such as a split", nargs="+", metavar="DIR"),
    argument("--recursive", "read sub-directories too", action="store_true"),
    argument("--keep_loudness", "negative loudness is an error", action="store_true"),
)
def check(args: argparse.Namespace) -> int:
    """Report problems of feature trees; exit status 1 for warnings only, 2 for errors."""
    from emaae.data import check

    trees = check.check(args.dirs, args.recursive, args.keep_loudness)
    print("\n".join(check.report(trees)))
    return check.exit_status(trees)


@verb(
    argument("--audio_dir", "tree of .flac and .wav files", required=True),
    argument("--out_dir", "directory of the feature tree", required=True),
    argument("--device", "auto, cpu, cuda or cuda:N (default: auto)", default="auto"),
    number("--batch_s", "seconds of audio in a batch (default: 60)", float, default=60.0, above=0),
)
def extract(args: argparse.Namespace) -> int:
    """Extract features from audio with SPARC; exit status 1 if this failed for some files."""
    from emaae.corpus.extract import extract

    result = extract(args.audio_dir, args.out_dir, args.device, args.batch_s)
    extracted = f"{result.n_new} utterances extracted, {result.seconds / 3600:.2f} hours"
    print(f"{args.out_dir}: {extracted}; {result.n_kept} were there already")
    for why in result.broken.values():
        print(f"no features: {one_line(why)}", file=sys.stderr)
    if result.broken:
        print(f"{len(result.broken)} file(s) without features", file=sys.stderr)
    return 1 if result.broken else 0


@verb(
    argument("file", "a sweep file of W&B, such as sweeps/demo.yaml", metavar="FILE.yaml"),
    number("--jobs", "runs at a time (default: one per GPU, else one)", at_least=1),
    argument("--out", "folder of the sweep (default: runs/FILE)", metavar="DIR"),
    argument(
        "--storage",
        "queue of points that several runners share: a database, or a journal file on a shared "
        "disk (default: DIR/study.db)",
        metavar="URL|FILE.log",
    ),
    argument("--dry-run", "print what would run, and run nothing", action="store_true"),
    usage="python -m emaae sweep FILE.yaml [OPTION ...] [-- FLAGS OF train.py]",
)
def sweep(args: argparse.Namespace) -> int:
    """Run a sweep file on this machine, without an account; the same command continues it."""
    from emaae.sweeps import runner

    options = ("jobs", "out", "storage", "dry_run", "flags")
    return runner.run(args.file, **{name: getattr(args, name) for name in options})


@verb(
    argument("ref", "a run, a sweep or an --out_dir, local or on W&B", metavar="REF"),
    argument("--out", "file to write (default: report.html in its folder)", metavar="FILE.html"),
)
def report(args: argparse.Namespace) -> None:
    """Write one page that compares the runs of a sweep, or shows a single one."""
    from analysis.report import main

    main([args.ref, *(["--out", args.out] if args.out else [])])


@verb(argument("files", nargs="+", metavar="FILE.yaml"))
def lint(args: argparse.Namespace) -> int:
    """Report errors in sweep files, with line numbers."""
    from emaae.sweeps import sweep_file

    n_errors = 0
    for path in args.files:
        for finding in sweep_file.examine(find_packaged(path))[1]:
            print(finding)
            n_errors += not finding.warning
    return 2 if n_errors else 0


@verb(
    argument(
        "ref", "a sweep's folder or --out_dir, or ENTITY/PROJECT[/SWEEP] on W&B", metavar="REF"
    )
)
def promote(args: argparse.Namespace) -> None:
    """Mark the best finished model of a sweep or project as `best`."""
    from emaae.tracking.models import promote

    best = promote(args.ref)
    print(f"best: run {best.run}, score {best.score:.4f}\nmodel: {best.ref}")


@verb(
    argument(
        "ref",
        "a sweep's or run's folder, or ENTITY/PROJECT[/SWEEP|/RUN|/NAME:ALIAS] on W&B",
        metavar="REF",
    ),
    argument("--out", "folder for the model's files", required=True),
)
def pull(args: argparse.Namespace) -> None:
    """Copy a model's files from a local folder or W&B, and check their sha256."""
    from emaae.tracking.models import pull

    print(f"model: {pull(args.ref, Path(args.out)) / 'best.pth'}")


@verb(
    argument("folder", "a run's folder, or a folder with runs below it", metavar="DIR"),
    argument("--project", "W&B project (default: that of the run's settings)"),
    argument("--entity", "W&B user or team (default: that of the run's settings)"),
)
def upload_pending(args: argparse.Namespace) -> None:
    """Upload to W&B what is missing there of a run, or of all runs below a folder."""
    from emaae.tracking.upload import upload_pending

    complete, missing = upload_pending(Path(args.folder), args.entity, args.project)
    for folder, path in complete.items():
        print(f"{folder}: all is at {path}")
    if missing:
        raise UserError("; ".join(missing))


@verb(
    argument("folder", "the folder of a local sweep", metavar="DIR"),
    argument("--project", "W&B project", required=True),
    argument("--entity", "W&B user or team (default: your own)"),
)
def publish(args: argparse.Namespace) -> None:
    """Put a local sweep on W&B, as if it had run there."""
    from emaae.tracking.upload import publish

    print(f"sweep: {publish(Path(args.folder), args.project, args.entity)}")


@verb(
    MODEL_ARGUMENT,
    FEATURES_ARGUMENT,
    argument("--out", "tree to write; complete files are kept", required=True, metavar="DIR"),
    argument(
        "--format",
        "arrays of this number type; sparse: a CSR matrix for scipy.sparse.load_npz (default: "
        "float32)",
        choices=ENCODING_FORMATS,
        default=ENCODING_FORMATS[0],
    ),
    argument(
        "--upload",
        "upload the encodings to a bucket too, as arrays that cottoncandy downloads",
        metavar="s3://BUCKET/PREFIX",
    ),
    *map(knob, ("recursive", "bucket", "on_bad_file", "device")),
)
def encode(args: argparse.Namespace) -> None:
    """Encode all utterances of a feature tree or bucket; to continue, repeat the command."""
    from emaae.corpus.encode import encode_tree, open_model, open_upload, upload_tree
    from emaae.data.load import list_source

    listing = list_source(args.features, args.recursive, args.bucket)
    target = open_upload(args.upload) if args.upload else None  # before anything is encoded
    skip = args.on_bad_file == "skip"
    with open_model(args.model, args.device or "auto") as (model, made_by):
        done = encode_tree(model, listing, Path(args.out), args.format, made_by, skip_broken=skip)
        print(done.summary(args.out))
        if target:
            n_new = upload_tree(Path(args.out), *target, model.inner_size)
            print(f"{args.upload}: {n_new} utterances uploaded")


@verb(
    ENCODINGS_ARGUMENT,
    argument("--out", "folder for the files, one per story", required=True, metavar="DIR"),
    number("--tr", "repetition time (s); the first TR begins at 0 s", float, above=0, metavar="S"),
    argument(
        "--tr_times",
        "file of TR times (s), or a folder with a file STORY.txt for each story",
        metavar="FILE|DIR",
    ),
    argument(
        "--onsets",
        "csv or tsv with utterance, onset (s) and story (default: each utterance is a story)",
        metavar="TABLE",
    ),
    number("--delays", "in TRs (default: 1 2 3 4)", nargs="+", default=[1, 2, 3, 4]),
    number(
        "--trim",
        "TRs to leave out at the beginning and at the end (default: 0 0)",
        nargs=2,
        default=[0, 0],
        at_least=0,
    ),
    argument(
        "--units_of",
        "encodings of the training set; their live units are used (default: --encodings)",
        metavar="DIR",
    ),
    argument(
        "--format",
        "arrays, or pandas tables (default: npz)",
        choices=("npz", "csv", "parquet"),
        default="npz",
    ),
)
def regressors(args: argparse.Namespace) -> None:
    """Make design matrices for models of the brain from encodings, one for each story."""
    from emaae.corpus import regressors as regress

    if (args.tr is None) == (args.tr_times is None):
        raise UserError("give either --tr, the seconds between TRs, or --tr_times, TR times")
    if len(set(args.delays)) < len(args.delays):
        raise UserError(f"--delays must differ, got {' '.join(map(str, args.delays))}")
    stories = regress.read_stories(args.encodings, args.onsets)
    times = regress.read_tr_times(args.tr_times, list(stories)) if args.tr_times else {}
    units = regress.live_units(args.encodings, args.units_of or args.encodings)
    design = regress.Design(units, args.tr, times, args.delays, tuple(args.trim))
    lengths = regress.write_regressors(args.encodings, Path(args.out), design, stories, args.format)
    size = f"{sum(lengths.values())} TRs, {len(units)} units at {len(args.delays)} delays"
    print(f"{args.out}: {len(lengths)} stories, {size}")


@verb(
    MODEL_ARGUMENT,
    ENCODINGS_ARGUMENT,
    argument("--out", "tree to write; complete files are kept", required=True, metavar="DIR"),
    *map(knob, ("recursive", "device")),
)
def decode(args: argparse.Namespace) -> None:
    """Decode a tree of encodings into features; to continue, repeat the command."""
    from emaae.corpus.encode import decode_tree, open_model

    with open_model(args.model, args.device or "auto") as (model, made_by):
        done = decode_tree(model, args.encodings, Path(args.out), made_by, recursive=args.recursive)
    print(done.summary(args.out))


@verb(
    MODEL_ARGUMENT,
    FEATURES_ARGUMENT,
    *map(knob, EVALUATE_KNOBS),
    argument("--json", "print one line of JSON", action="store_true"),
    argument("--out", "also write the metrics to this file", metavar="FILE.json"),
)
def evaluate(args: argparse.Namespace) -> None:
    """Measure a model on a feature tree or a bucket, with the loss of the run that trained it."""
    from emaae.corpus.evaluate import evaluate_model
    from emaae.runs.console import metric_lines
    from emaae.runs.folder import json_safe

    if args.out:  # before measuring, which takes a while
        if Path(args.out).suffix != ".json" or Path(args.out).is_dir():
            raise UserError(f"--out must name a .json file, got {args.out}")
        make_folder(Path(args.out).parent)
    knobs = {name: getattr(args, name) for name in EVALUATE_KNOBS}
    # Only the metrics go to stdout; messages about the data go to stderr.
    with contextlib.redirect_stdout(sys.stderr):
        row = json_safe(evaluate_model(args.model, args.features, **knobs))
    if args.out:
        write_json(Path(args.out), row)
    print(json.dumps(row, allow_nan=False) if args.json else metric_lines(row))


@verb(
    MODEL_ARGUMENT,
    argument(
        "--format",
        "torch: encoder.pt2 and decoder.pt2; onnx: the same as .onnx; huggingface: a folder for "
        "the hub; original: the files of the original project",
        required=True,
        choices=("torch", "onnx", "huggingface", "original"),
    ),
    argument("--out", "folder for the files", required=True, metavar="DIR"),
)
def export(args: argparse.Namespace) -> None:
    """Export a model so that it runs without emaae, or as files of the original project."""
    from emaae.loading import model_file
    from emaae.runs import original, portable
    from emaae.runs.checkpoint import export_original, load_model_file
    from emaae.runs.model_card import model_card

    out = Path(args.out)
    if args.format in ("huggingface", "original") and (out / "best.pth").exists():
        raise UserError(f"--out {out} has a model, whose settings it would replace: name another")
    with model_file(args.model) as path:
        model = load_model_file(path)
        if args.format == "torch":
            portable.to_torch(model, out)
        elif args.format == "onnx":
            difference = portable.to_onnx(model, out)
            print(f"differs from PyTorch by at most {difference:.1g} of the largest value")
        elif args.format == "huggingface":
            portable.to_huggingface(model, out, model_card(path.parent, str(args.model)))
        else:
            out = export_original(model, out, original.settings_beside(path))
            if not original.has_same_reconstructions(model):
                note = "reconstructions end in a ReLU there: negative values become 0"
                if model.norm == "original":
                    note = "reconstructions are at least 0 there, and at least the mean here"
                print(f"encodings are the same; {note}")
    print(f"model: {out}")


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    # Arguments after `--` are for the program that a sweep starts.
    end = argv.index("--") if "--" in argv else len(argv)
    argv, flags = argv[:end], argv[end + 1 :]
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        import argcomplete

        argcomplete.autocomplete(PARSER)
    args = PARSER.parse_args(argv)
    if flags and args.verb != "sweep":
        raise UserError(
            f"only sweep takes flags after --, which it passes to train.py, got {' '.join(flags)!r}"
        )
    args.flags = flags
    return args.run(args) or 0


def run(program: str = "emaae") -> NoReturn:
    """Run the verb of the command line and exit; `emaae` is the command of an installed package."""
    with reporting_errors(program):
        sys.exit(main())


if __name__ == "__main__":
    run("python -m emaae")
