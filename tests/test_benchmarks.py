"""The conclusions of the benchmarks, from numbers made by hand."""

from benchmarks.time_to_score import reached, summary
from benchmarks.timing import spread, table


def rows(way, epochs, seed, *scores, pace):
    given = {"way": way, "epochs": epochs, "seed": seed, "fvu": 0.1, "sparsity": 0.9, "dead": 0.0}
    return [
        given | {"epoch": i, "seconds": pace * i, "score": score}
        for i, score in enumerate(scores, 1)
    ]


def test_time_to_score_is_that_of_our_shortest_training_that_reaches_the_reference():
    found = [
        *rows("plain", 4, 0, 0.9, 0.5, 0.2, 0.3, pace=10),
        *rows("ours", 2, 0, 0.6, 0.4, pace=1),  # never reaches the score
        *rows("ours", 3, 0, 0.7, 0.2, 0.1, pace=1.5),
    ]
    sooner, equal = summary(found).split("\n\n")
    assert sooner.splitlines()[-1] == "| 0 | 0.2000 | 3 | 30 | 3 | x 10.0 |"
    assert equal.splitlines()[-1].split(" | ")[:4] == ["| 3", "4.500", "1.000", "0.100"]
    assert reached(found, 0.05) is None


def test_a_score_that_is_not_reached_is_reported():
    found = [*rows("plain", 1, 3, 0.2, pace=1), *rows("ours", 1, 3, 0.4, pace=1)]
    assert "| 3 | 0.2000 | 1 | 1 |  | never |" in summary(found)


def test_a_spread_is_mean_and_standard_deviation_and_a_table_is_markdown():
    assert spread([1.0, 3.0]) == "2.000 +- 1.414"
    assert spread([0.5]) == "0.500"
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
