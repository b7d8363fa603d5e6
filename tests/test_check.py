"""The check of feature trees: every kind of problem is found, counted and named."""

import numpy as np
import pytest
from conftest import speech

from emaae.__main__ import main
from emaae.data.check import ERRORS, WARNINGS, check, exit_status, report
from emaae.data.features import frame_times
from emaae.system.errors import UserError


def utterance(seed: int, n_frames: int = 100) -> np.ndarray:
    """Features (T, 14) as the extractor writes them: z-scores, X against Y of the lower lip."""
    x = speech(n_frames, seed)
    x[:, :12] = (x[:, :12] - x[:, :12].mean(0)) / x[:, :12].std(0)
    x[:, 10] = -0.7 * x[:, 11] + 0.7 * x[:, 10]
    return x


def write(root, name: str, features: np.ndarray, times="whole"):
    path = root / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, features=features)
    n_frames = len(features)
    if isinstance(times, str):
        times = np.tile(np.float32([0, (320 * n_frames + 80) / 16000]), (n_frames, 1))
    if times is not None:
        np.savez(root / f"{name}_times.npz", times=times)


@pytest.fixture
def tree(tmp_path):
    """Three utterances of two speakers with nothing wrong."""
    for i, name in enumerate(["1/2/1-2-0000", "1/2/1-2-0001", "3/4/3-4-0000"]):
        write(tmp_path / "t", name, utterance(i))
    return tmp_path / "t"


def found(*roots) -> dict[str, list[str]]:
    return {k: where for tree in check(roots, True) for k, where in tree.findings.items() if where}


def test_a_correct_tree_has_no_findings(tree):
    trees = check([tree], True)
    assert found(tree) == {}
    assert exit_status(trees) == 0
    text = "\n".join(report(trees))
    assert text.endswith("all is well")
    assert trees[0].lengths == [100, 100, 100]
    assert trees[0].speakers == {"1", "3"}


def test_the_table_holds_the_moments_of_all_frames(tree):
    (checked,) = check([tree], True)
    x = np.concatenate([utterance(i) for i in range(3)]).astype(np.float64)
    mean, sd = checked.mean_and_sd()
    assert np.allclose(mean, x.mean(0))
    assert np.allclose(sd, x.std(0))
    assert np.allclose(checked.lip_correlation(), np.corrcoef(x[:, 10], x[:, 11])[0, 1])
    assert checked.lip_correlation() < -0.3


def changed(change):
    def write_it(tree):
        x = utterance(9)
        change(x)
        write(tree, "bad", x)

    return write_it


def raw(content: bytes):
    return lambda tree: (tree / "bad.npz").write_bytes(content)


def timed(times):
    return lambda tree: write(tree, "bad", utterance(9), times)


def forwards(tree):
    x = utterance(9, 2000)
    x[:, 10] = x[:, 11]
    write(tree, "bad", x)


# Frames of their own, 100 a second; the whole utterance's, 100 a second; a part of a recording.
OWN = np.float32([[i / 100, i / 100 + 0.02] for i in range(100)])
FAST = np.tile(np.float32([0, 1]), (100, 1))
PART = np.tile(np.float32([1.2, 3.205]), (100, 1))

WRONG = {
    "unreadable": raw(b"PK\3\4"),
    "columns": lambda tree: write(tree, "bad", utterance(9)[:, :13]),
    "numbers": changed(lambda x: x.__setitem__((5, 3), np.nan)),
    "name": lambda tree: write(tree, "bad\nname", utterance(9)),
    "unused": changed(lambda x: x.__setitem__((slice(None), 12), -x[:, 12])),
    "rate": timed(FAST),
    "sign": forwards,
    "scale": changed(lambda x: x.__imul__(np.float32([30] * 12 + [1, 1]))),
    "pitch": changed(lambda x: x.__setitem__((slice(0, 7), 13), 0)),
    "constant": changed(lambda x: x.__setitem__((slice(None), 4), 1.5)),
    "twice": lambda tree: write(tree, "bad", utterance(0)),
    "collision": lambda tree: (
        write(tree, "1/2/1-2-0000".upper() + "x", utterance(9))
        or write(tree, "1/2/1-2-0000X", utterance(8))
    ),
    "times": timed(PART),
    "missing": lambda tree: write(tree, "bad", utterance(9), None),
    "short": lambda tree: write(tree, "bad", utterance(9)[:12]),
    "long": lambda tree: write(tree, "bad", utterance(9, 3001)),
}
IN_TWO = ("shared", "speakers")


@pytest.mark.parametrize("kind", WRONG)
def test_each_problem_of_a_tree_is_found_and_no_other(tree, kind):
    WRONG[kind](tree)
    assert list(found(tree)) == [kind]
    assert len(found(tree)[kind]) == 1
    trees = check([tree], True)
    assert exit_status(trees) == (2 if kind in ERRORS else 1)
    assert next(report(trees)).startswith(f"{'error' if kind in ERRORS else 'warning'} (1): ")


def test_every_kind_of_finding_has_a_test():
    assert {*WRONG, *IN_TWO, "loudness"} == {*ERRORS, *WARNINGS}


def test_negative_loudness_is_an_error_for_runs_that_read_it(tree):
    WRONG["unused"](tree)
    trees = check([tree], True, keep_loudness=True)
    assert exit_status(trees) == 2
    assert next(report(trees)).startswith("error (1): utterances with negative loudness")


def test_times_of_each_frame_are_fine_and_tell_the_rate(tree):
    write(tree, "own", utterance(9), OWN * 2)
    assert found(tree) == {}
    write(tree, "own", utterance(9), OWN)
    assert found(tree) == {"rate": ["own (100.0 a second)"]}
    write(tree, "own", utterance(9)[:1], frame_times(1))
    assert found(tree) == {"short": ["own (1)"]}


def test_times_that_encoding_would_replace_are_a_finding(tree):
    standing = OWN * 2
    standing[3, 0] = standing[2, 0]  # a frame that begins with the one before
    write(tree, "own", utterance(9), standing)
    assert found(tree) == {"times": ["own ([0, 0.04] to [1.98, 2.02])"]}


def test_audio_longer_by_two_and_a_half_frames_has_a_wrong_rate(tree):
    write(tree, "own", utterance(9, 98), np.tile([0, 2.015], (98, 1)))
    assert found(tree) == {"rate": ["own (48.6 a second)"]}


def test_names_that_collide_twice_are_one_finding(tree):
    for name in ("A/x", "a/x"):
        write(tree, name, utterance(len(name) + ord(name[0])))
    assert found(tree)["collision"] == ["A/x = a/x"]


def test_an_utterance_and_a_speaker_in_two_directories_are_found(tree, tmp_path):
    write(tmp_path / "v", "1/2/1-2-0009", utterance(20))
    write(tmp_path / "v", "5/6/5-6-0000", utterance(0))
    (shared,) = found(tree, tmp_path / "v")["shared"]
    assert shared == f"5/6/5-6-0000 ({tree}: 1/2/1-2-0000)"
    assert found(tree, tmp_path / "v")["speakers"] == [f"1 ({tmp_path / 'v'} and {tree})"]


def test_channels_without_frames_are_not_shown(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.npz").write_bytes(b"no archive")
    lines = "\n".join(report(check([tmp_path / "t"], True)))
    assert "error (1)" in lines
    assert "nan (nan)" not in lines
    assert "mean (sd)" not in lines


def test_the_heading_of_channels_names_the_working_directory(tree, monkeypatch):
    monkeypatch.chdir(tree)
    (line,) = (line for line in report(check(["."], True)) if "mean (sd)" in line)
    assert line.split() == f"channel {tree.name}: mean (sd), min to max".split()


def test_the_worst_comes_first_with_a_few_examples(tree):
    for i in range(6):
        write(tree, f"m{i}", utterance(30 + i), None)
    WRONG["pitch"](tree)
    WRONG["unreadable"](tree)
    lines = list(report(check([tree], True)))
    heads = [line for line in lines if line.startswith(("error", "warning"))]
    assert [head.partition(":")[0] for head in heads] == ["error (1)", "warning (6)"]
    assert "    and 3 more" in lines
    assert sum(line.startswith("    m") for line in lines) == 3


def test_the_verb_ends_with_the_status_that_is_documented(tree, capsys):
    assert main(["check", "--recursive", str(tree)]) == 0
    WRONG["missing"](tree)
    assert main(["check", "--recursive", str(tree)]) == 1
    WRONG["numbers"](tree)
    assert main(["check", "--recursive", str(tree)]) == 2
    assert "bad.npz has nan at frame 5, column TBY" in capsys.readouterr().out


def test_a_missing_directory_prints_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        check([tmp_path / "nowhere"], True)
