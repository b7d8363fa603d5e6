"""The tables of FINDINGS.md have the numbers of the files beside it."""

import csv
import re
from collections.abc import Iterator

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
