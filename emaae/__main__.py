"""`python -m emaae VERB`: everything around a run that is not the run itself."""

import argparse
import sys
from typing import NoReturn

from emaae.errors import UserError, speaking_plainly


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what there is")


def demo_data(args: argparse.Namespace) -> None:
    """Write the generated demo data as a feature tree."""
    from emaae.data.demo import write_tree

    if not args.out:
        raise UserError("--out must name a directory, got an empty text")
    if args.n_utterances is not None and args.n_utterances > 100_000:
        raise UserError(f"--n_utterances must be at most 100000, got {args.n_utterances}")
    try:
        counts = write_tree(args.out, args.seed, args.n_utterances, args.scale)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written: {error.strerror or error}") from None
    for split, n in counts.items():
        print(
            f"{args.out}/{split}: {n['utterances']} utterances, {n['speakers']} speakers, "
            f"{n['frames'] / 50 / 60:.1f} minutes"
        )


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    parser = _Parser(prog="python -m emaae", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    verb = verbs.add_parser("demo-data", help=demo_data.__doc__, description=demo_data.__doc__)
    verb.add_argument("--out", required=True, help="directory for train/, val/ and test/")
    verb.add_argument("--seed", type=int, default=0, help="another seed, other speakers and words")
    verb.add_argument(
        "--n_utterances", type=int, help="in each split (default: 64 train, 28 val, 28 test)"
    )
    verb.add_argument(
        "--scale", type=float, default=0.3, help="times LibriSpeech's durations (default: 0.3)"
    )
    verb.set_defaults(run=demo_data)

    args = parser.parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    with speaking_plainly("python -m emaae"):
        sys.exit(main())
