"""The tables of FINDINGS.md have the numbers of the files beside it."""

import csv
import re
from collections.abc import Iterator
from statistics import fmean

import pytest
from conftest import ROOT

FOLDER = ROOT / "analysis" / "findings"
# The columns of the files by the headings of the page.
COLUMNS = {
    "fvu": "fvu",
    "× plain L1": "times_reference",
    "persistence": "persistence",
    "dead": "dead",
    "distinct units": "distinct",
    "participation ratio": "participation",
    "zeros of live units": "live_sparsity",
    "phone": "phone",
    "phone against plain L1": "phone_gain",
    "gesture": "gesture",
    "gesture against plain L1": "gesture_gain",
}
# A mean, and perhaps the interval behind it.
ESTIMATE = re.compile(r"(-?[\d.]+)(?: \[(-?[\d.]+), (-?[\d.]+)\])?")


def table_rows() -> Iterator[dict[str, str]]:
    """The cells of each row of the page's tables by their headings."""
    heads: list[str] = []
    for line in (ROOT / "analysis" / "FINDINGS.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = [
                f"{cells[i - 1]} {c}" if c.startswith("against") else c for i, c in enumerate(cells)
            ]
        elif not line.startswith("|---"):
            yield dict(zip(heads, cells))


def is_rounded(shown: str, value: str) -> bool:
    """Whether a number of the page is one of a file, to the digits that it has."""
    digits = len(shown.partition(".")[2])
    return bool(value) and abs(float(shown) - float(value)) <= 0.501 * 10**-digits


ROWS = [row for row in table_rows() if any("[" in cell for cell in row.values())]
MEASURED = [
    row for path in FOLDER.glob("*.csv") for row in csv.DictReader(path.read_text().splitlines())
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row.values())))
def test_a_row_of_the_findings_is_a_row_of_a_file(row):
    wanted = [
        (f"{column}{end}", shown)
        for head, column in COLUMNS.items()
        if (found := ESTIMATE.match(row.get(head, "")))
        for end, shown in zip(("", "_low", "_high"), found.groups())
        if shown
    ]
    assert len(wanted) >= 4
    assert any(all(is_rounded(s, one.get(c, "")) for c, s in wanted) for one in MEASURED), wanted


def test_the_accuracies_of_dense_inputs_are_those_of_their_file():
    measured = {
        (row["labels"], row["input"]): row["accuracy"]
        for row in csv.DictReader((FOLDER / "inputs.csv").read_text().splitlines())
    }
    raw, untrained = (
        next(row for row in table_rows() if row.get("encoding", "").startswith(name))
        for name in ("raw features", "the untrained encoder, dense")
    )
    for labels in ("phone", "gesture"):
        one, nine = raw[labels].split(", ")
        assert is_rounded(one, measured[labels, "raw, 1 frame"])
        assert is_rounded(nine, measured[labels, "raw, 9 frames"])
        dense = measured[labels, "untrained, 3 blocks, 256 units"]
        assert is_rounded(untrained[labels], dense)


def test_the_numbers_of_corpora_that_were_left_out_are_those_of_their_file():
    measured = list(csv.DictReader((FOLDER / "left_out.csv").read_text().splitlines()))
    rows = [row for row in table_rows() if "left out" in row]
    assert len(rows) == 6
    for row in rows:
        corpus = row["left out"].partition(" ")[0].lower()
        of_topk = {"feature_topk at .75": "0", "the same, slowness .1": "0.1"}
        settings = {head: ("feature_topk", slow, "0.75") for head, slow in of_topk.items()}
        if corpus != "ema2wav":  # see the page
            at = f"0{row['zeros']}".rstrip("0")
            of_l1 = {"L1: fvu, persistence": "0", "L1, slowness .1": "0.1"}
            settings |= {head: ("relu", slow, at) for head, slow in of_l1.items()}
        for head, (activation, slow, sparsity) in settings.items():
            (found,) = (
                one
                for one in measured
                if one["left_out"] == corpus
                and one["setting"] == f"{activation}, slow_coefficient {slow}"
                and one["live_sparsity"] == sparsity
            )
            shown = re.findall(r"\.\d+", row[head])
            assert len(shown) == (2 if found["fvu"] else 0), row
            assert found["seeds"] == "1/3" if "one seed" in row[head] else found["seeds"] != "1/3"
            for number, column in zip(shown, ("fvu", "persistence")):
                assert is_rounded(number, found[column]), row


INPUTS = {
    "raw features": "raw features",
    "untrained encoder, thresholded": "untrained",
    "plain L1": "slow_coefficient 0",
    "with slowness 1.2": "slow_coefficient 1.2",
    "null of plain L1: shifted by half a story": "null of slow_coefficient 0",
    "null with slowness 1.2": "null of slow_coefficient 1.2",
}
JITTERS = {
    "onsets without error": "0.0",
    "error with sd 250 ms": "0.25",
    "sd 1 s, clipped at ± .48 s": "1.0",
}


def test_the_r2_of_simulated_responses_are_those_of_their_file():
    measured = list(csv.DictReader((FOLDER / "brain.csv").read_text().splitlines()))
    rows = [row for row in table_rows() if "onsets without error" in row]
    assert [row["input"] for row in rows] == list(INPUTS)
    for row in rows:
        own = [one for one in measured if one["input"] == INPUTS[row["input"]]]
        zeros = fmean(float(one["live_sparsity"]) for one in own)
        assert row["zeros"] == (f"{zeros:.2f}".removeprefix("0") if zeros else "")
        for head, jitter in JITTERS.items():
            r2 = [float(one["r2"]) for one in own if one["jitter_s"] == jitter]
            expected = [f"{of(r2):.3f}".removeprefix("0") for of in (fmean, min, max)]
            assert re.findall(r"\.\d{3}", row[head]) == expected
