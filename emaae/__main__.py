"""`python -m emaae VERB`: everything around a run that is not the run itself."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from emaae.config import FORMS, KNOBS
from emaae.system.errors import UserError, plainly, speaking_plainly
from emaae.system.files import expanded, packaged

# Knobs of a run that `evaluate` has too.
MEASURED = (
    *("bucket", "recursive", "on_bad_file", "cache_dir", "batch_sz", "target_sparsity"),
    *("target_persistence", "device"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what there is")


def demo_data(args: argparse.Namespace) -> None:
    """Write the generated demo data as a feature tree."""
    from emaae.data.demo import write_tree

    if not args.out:
        raise UserError("--out must name a directory, got an empty text")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {args.jobs}")
    if args.n_utterances is not None and args.n_utterances > 100_000:
        raise UserError(f"--n_utterances must be at most 100000, got {args.n_utterances}")
    try:
        jobs = args.jobs or (os.cpu_count() or 1 if args.like != "demo" else 1)
        counts = write_tree(args.out, args.seed, args.n_utterances, args.scale, args.like, jobs)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written: {error.strerror or error}") from None
    for split, n in counts.items():
        print(
            f"{args.out}/{split}: {n['utterances']} utterances, {n['speakers']} speakers, "
            f"{n['frames'] / 50 / 60:.1f} minutes"
        )


def check(args: argparse.Namespace) -> int:
    """Say what is wrong with feature trees; exit status 0 fine, 1 warnings alone, 2 errors."""
    from emaae.data import check

    trees = check.check(args.dirs, args.recursive, args.keep_loudness)
    print("\n".join(check.report(trees)))
    return check.exit_status(trees)


def extract(args: argparse.Namespace) -> int:
    """Make features from audio with SPARC; exit status 0 all, 1 some files have none."""
    from emaae.corpus.extract import extract

    if not 0 < args.batch_s < float("inf"):
        raise UserError(f"--batch_s must be a number of seconds above 0, got {args.batch_s}")
    result = extract(args.audio_dir, args.out_dir, args.device, args.batch_s)
    print(
        f"{args.out_dir}: {result.n_new} utterances extracted, {result.seconds / 3600:.2f} hours; "
        f"{result.n_kept} were there"
    )
    for why in result.broken.values():
        print(f"no features: {plainly(why)}", file=sys.stderr)
    if result.broken:
        print(f"{len(result.broken)} file(s) without features", file=sys.stderr)
    return 1 if result.broken else 0


def sweep(args: argparse.Namespace) -> int:
    """Run a sweep file on this machine, without an account; again to go on where it stopped."""
    from emaae.sweeps import runner as sweep

    return sweep.run(
        args.file,
        jobs=args.jobs,
        out=args.out,
        storage=args.storage,
        dry_run=args.dry_run,
        flags=args.flags,
    )


def lint(args: argparse.Namespace) -> int:
    """Say what is wrong with sweep files, by line."""
    from emaae.sweeps import file as sweep_file

    findings = [f for path in args.files for f in sweep_file.check(packaged(path))]
    for finding in findings:
        print(finding)
    return 2 if any(not finding.warning for finding in findings) else 0


def report(args: argparse.Namespace) -> None:
    """Write one page that compares the runs of a sweep, or shows a single one."""
    from analysis.report import main

    main([args.ref, *(["--out", args.out] if args.out else [])])


def promote(args: argparse.Namespace) -> None:
    """Name the best finished model of a sweep or project `best`."""
    from emaae.tracking.models import promote

    best = promote(args.ref)
    print(f"best: run {best.run}, score {best.score:.4f}\nmodel: {best.ref}")


def pull(args: argparse.Namespace) -> None:
    """Get a model's files, checked by their sha256."""
    from pathlib import Path

    from emaae.tracking.models import pull

    print(f"model: {pull(args.ref, Path(args.out)) / 'best.pth'}")


def upload_pending(args: argparse.Namespace) -> None:
    """Upload to W&B what it lacks of a run, or of all runs below a folder."""
    from pathlib import Path

    from emaae.tracking.upload import upload_pending

    there, missing = upload_pending(Path(args.folder), args.entity, args.project)
    for folder, path in there.items():
        print(f"{folder}: all of it is at {path}")
    if missing:
        raise UserError("; ".join(missing))


def publish(args: argparse.Namespace) -> None:
    """Put a local sweep on W&B, as if it had run there."""
    from pathlib import Path

    from emaae.tracking.upload import publish

    print(f"sweep: {publish(Path(args.folder), args.project, args.entity)}")


def encode(args: argparse.Namespace) -> None:
    """Write the encodings of all utterances of a feature tree or a bucket; again to go on."""
    from pathlib import Path

    from emaae.corpus.encode import encode_tree, opened, upload_tree
    from emaae.data import listed

    listing = listed(args.features, args.recursive, args.bucket)
    skip = args.on_bad_file == "skip"
    with opened(args.model, args.device or "auto") as (model, made_by):
        done = encode_tree(model, listing, Path(args.out), args.format, made_by, skip_broken=skip)
        print(done.summary(args.out))
        if args.upload:
            n_new = upload_tree(Path(args.out), args.upload, model.inner_size)
            print(f"{args.upload}: {n_new} utterances uploaded")


def regressors(args: argparse.Namespace) -> None:
    """Make design matrices for models of the brain out of encodings, one for each story."""
    from pathlib import Path

    from emaae.corpus import regressors as regress

    if (args.tr is None) == (args.tr_times is None):
        raise UserError("give either --tr, seconds between TRs, or --tr_times, a file of them")
    if args.tr is not None and not 0 < args.tr < float("inf"):
        raise UserError(f"--tr must be a number of seconds above 0, got {args.tr}")
    if min(args.trim) < 0:
        raise UserError(f"--trim must be TRs, 0 or more at each end, got {min(args.trim)}")
    if len(set(args.delays)) < len(args.delays):
        raise UserError(f"--delays must differ, got {' '.join(map(str, args.delays))}")
    stories = regress.stories(args.encodings, args.onsets)
    times = regress.read_tr_times(args.tr_times, list(stories)) if args.tr_times else None
    units = regress.read_manifest(args.units_of or args.encodings)["fired"]
    if not units:
        raise UserError(
            f"no unit fires in {args.units_of or args.encodings}: nothing to regress on"
        )
    design = regress.Design(units, args.tr, times, args.delays, tuple(args.trim))
    lengths = regress.write(args.encodings, Path(args.out), design, stories, args.format)
    print(
        f"{args.out}: {len(lengths)} stories, {sum(lengths.values())} TRs, {len(units)} units at "
        f"{len(args.delays)} delays"
    )


def decode(args: argparse.Namespace) -> None:
    """Write the features that a tree of encodings stands for; again to go on."""
    from pathlib import Path

    from emaae.corpus.encode import decode_tree, opened

    with opened(args.model, args.device or "auto") as (model, made_by):
        done = decode_tree(model, args.encodings, Path(args.out), made_by, recursive=args.recursive)
    print(done.summary(args.out))


def evaluate(args: argparse.Namespace) -> None:
    """Measure a model on a feature tree or a bucket, by the loss of the run that made it."""
    import contextlib
    import json
    from pathlib import Path

    from emaae.corpus.evaluate import evaluate_ref
    from emaae.runs.checkpoint import write_json
    from emaae.runs.console import metric_lines
    from emaae.runs.folder import plain

    knobs = {name: getattr(args, name) for name in MEASURED}
    # Messages about the data are no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        row = plain(evaluate_ref(args.model, args.features, **knobs))
    if args.out:
        write_json(Path(args.out), row)
    print(json.dumps(row, allow_nan=False) if args.json else metric_lines(row))


def export(args: argparse.Namespace) -> None:
    """Write a model in a form that needs no emaae, or as the original project's files."""
    from pathlib import Path

    from emaae.loading import model_file
    from emaae.runs import original, portable
    from emaae.runs.checkpoint import export_original, load_model_file
    from emaae.runs.model_card import model_card

    out = Path(args.out)
    with model_file(args.model) as path:
        model = load_model_file(path)
        if args.format == "torch":
            portable.to_torch(model, out)
        elif args.format == "onnx":
            furthest = portable.to_onnx(model, out)
            print(f"as PyTorch to {furthest:.1g} of the largest value")
        elif args.format == "huggingface":
            portable.to_huggingface(model, out, model_card(path.parent, str(args.model)))
        else:
            out = export_original(model, out, original.settings_beside(path))
            if not original.decodes_the_same(model):
                note = "reconstructions end in a ReLU there: below 0 they are 0"
                print(f"encodings are the same; {note}")
    print(f"model: {out}")


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    # What stands after `--` is for the program that a sweep starts.
    end = argv.index("--") if "--" in argv else len(argv)
    argv, flags = argv[:end], argv[end + 1 :]
    parser = _Parser(prog="python -m emaae", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(run: Callable[[argparse.Namespace], int | None], name: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=run.__doc__, description=run.__doc__)
        verb.set_defaults(run=run)
        return verb

    verb = add(demo_data, "demo-data")
    verb.add_argument("--out", required=True, help="directory for train/, val/ and test/")
    verb.add_argument("--seed", type=int, default=0, help="another seed, other speakers and words")
    verb.add_argument(
        "--like",
        choices=("demo", "librispeech-100h"),
        default="demo",
        help="64, 28 and 28 short utterances, or as many, as long and by as many speakers as in "
        "train-clean-100, dev-clean and test-clean (default: demo)",
    )
    verb.add_argument("--n_utterances", type=int, help="in each split (default: see --like)")
    verb.add_argument(
        "--scale", type=float, help="times LibriSpeech's durations (default: 0.3; 1 like it)"
    )
    verb.add_argument("--jobs", type=int, help="processes (default: 1; all cores for a large one)")

    verb = add(check, "check")
    verb.add_argument("dirs", nargs="+", metavar="DIR", help="a feature tree, such as a split")
    verb.add_argument("--recursive", action="store_true", help="read sub-directories too")
    verb.add_argument("--keep_loudness", action="store_true", help="runs are to read column 12")

    verb = add(extract, "extract")
    verb.add_argument(
        "--audio_dir",
        required=True,
        help="directory of .flac and .wav files, with its sub-directories",
    )
    verb.add_argument("--out_dir", required=True, help="directory of the feature tree")
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    verb.add_argument(
        "--batch_s", type=float, default=60.0, help="seconds of audio at once (default: 60)"
    )

    verb = add(sweep, "sweep")
    verb.usage = "python -m emaae sweep FILE.yaml [OPTION ...] [-- FLAGS OF train.py]"
    verb.add_argument(
        "file", metavar="FILE.yaml", help="a sweep file of W&B, such as sweeps/demo.yaml"
    )
    verb.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, else one)"
    )
    verb.add_argument("--out", metavar="DIR", help="folder of the sweep (default: runs/FILE)")
    verb.add_argument(
        "--storage",
        metavar="URL|FILE.log",
        help="queue that runners share: a database, or a journal file on a shared disk "
        "(default: DIR/study.db)",
    )
    verb.add_argument("--dry-run", action="store_true", help="say what would run, and end")

    verb = add(report, "report")
    verb.add_argument("ref", metavar="REF", help="a run, a sweep or an --out_dir, here or on W&B")
    verb.add_argument("--out", metavar="FILE.html", help="(default: report.html in its folder)")

    add(lint, "lint").add_argument("files", nargs="+", metavar="FILE.yaml")

    where = "a sweep's or run's folder here, or ENTITY/PROJECT[/SWEEP] on W&B"
    add(promote, "promote").add_argument("ref", metavar="REF", help=where)

    verb = add(pull, "pull")
    verb.add_argument("ref", metavar="REF", help=f"{where}, or ENTITY/PROJECT/NAME:ALIAS")
    verb.add_argument("--out", required=True, help="folder for the model's files")

    verb = add(upload_pending, "upload-pending")
    verb.add_argument("folder", metavar="DIR", help="a run's folder, or one with runs below it")
    verb.add_argument("--project", help="W&B project (default: where the run was meant to go)")
    verb.add_argument("--entity", help="W&B user or team (default: where the run was meant to go)")

    verb = add(publish, "publish")
    verb.add_argument("folder", metavar="DIR", help="the folder of a local sweep")
    verb.add_argument("--project", required=True, help="W&B project")
    verb.add_argument("--entity", help="W&B user or team (default: your own)")

    def add_model(run: Callable[[argparse.Namespace], None], name: str) -> argparse.ArgumentParser:
        verb = add(run, name)
        text = "run folder, .pth beside its model_config.json, wandb:ENTITY/PROJECT/NAME:ALIAS"
        verb.add_argument("--model", required=True, metavar="REF", help=text)
        return verb

    def add_knobs(verb: argparse.ArgumentParser, *names: str) -> None:
        for name in names:
            knob = KNOBS[name]
            switch = knob.kind is bool
            value = {"action": "store_true"} if switch else {"choices": knob.choices or None}
            verb.add_argument(f"--{name}", help=knob.text, **value)

    verb = add_model(encode, "encode")
    verb.add_argument("--features", required=True, metavar="DIR", help="feature tree, or a prefix")
    verb.add_argument("--out", required=True, metavar="DIR", help="tree of encodings, made or kept")
    verb.add_argument(
        "--format",
        choices=FORMS,
        default=FORMS[0],
        help="arrays of these numbers, or a CSR matrix for scipy.sparse.load_npz",
    )
    verb.add_argument(
        "--upload",
        metavar="s3://BUCKET/PREFIX",
        help="put them into a bucket too, as arrays that cottoncandy downloads",
    )
    add_knobs(verb, "recursive", "bucket", "on_bad_file", "device")

    verb = add(regressors, "regressors")
    verb.add_argument("--encodings", required=True, metavar="DIR", help="tree that encode wrote")
    verb.add_argument("--out", required=True, metavar="DIR", help="folder for a file per story")
    verb.add_argument("--tr", type=float, metavar="S", help="seconds between TRs, from 0 on")
    verb.add_argument("--tr_times", metavar="FILE|DIR", help="times in seconds, or STORY.txt each")
    verb.add_argument(
        "--onsets",
        metavar="TABLE",
        help="csv or tsv with utterance, onset (s) and story (default: each utterance is a story)",
    )
    verb.add_argument(
        "--delays", type=int, nargs="+", default=[1, 2, 3, 4], help="in TRs (default: 1 2 3 4)"
    )
    verb.add_argument(
        "--trim",
        type=int,
        nargs=2,
        default=[0, 0],
        metavar="N",
        help="TRs to leave out at both ends (default: 0 0)",
    )
    verb.add_argument(
        "--units_of",
        metavar="DIR",
        help="encodings of the training set, whose live units are taken (default: --encodings)",
    )
    verb.add_argument(
        "--format",
        choices=("npz", "csv", "parquet"),
        default="npz",
        help="arrays, or pandas tables (default: npz)",
    )

    verb = add_model(decode, "decode")
    verb.add_argument("--encodings", required=True, metavar="DIR", help="tree that encode wrote")
    verb.add_argument("--out", required=True, metavar="DIR", help="feature tree, made or kept")
    add_knobs(verb, "recursive", "device")

    verb = add_model(evaluate, "evaluate")
    verb.add_argument("--features", required=True, metavar="DIR", help="feature tree, or a prefix")
    add_knobs(verb, *MEASURED)
    verb.add_argument("--json", action="store_true", help="print one line of JSON")
    verb.add_argument("--out", metavar="FILE", help="write the metrics there as JSON too")

    verb = add_model(export, "export")
    verb.add_argument(
        "--format",
        required=True,
        choices=("torch", "onnx", "huggingface", "original"),
        help="encoder.pt2 and decoder.pt2, .onnx, a folder for the hub, the original project's",
    )
    verb.add_argument("--out", required=True, metavar="DIR", help="folder for the files")

    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a word might end
        import argcomplete

        argcomplete.autocomplete(parser)
    args = expanded(parser.parse_args(argv))
    if flags and args.verb != "sweep":
        raise UserError(f"only sweep passes flags on, got {' '.join(flags)!r} after --")
    args.flags = flags
    return args.run(args) or 0


def run() -> NoReturn:
    """The command `emaae` of an installed package."""
    with speaking_plainly("emaae"):
        sys.exit(main())


if __name__ == "__main__":
    with speaking_plainly("python -m emaae"):
        sys.exit(main())
