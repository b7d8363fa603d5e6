"""Design matrices for models of the brain: each formula by hand, then the command."""

import json
import os
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import saved, write_tree
from forked import forked

from emaae.__main__ import main
from emaae.corpus import regressors
from emaae.corpus.regressors import (
    Design,
    StoryUtterance,
    delayed,
    lanczos_resample,
    lanczos_window,
    zscored,
)
from emaae.data.features import frame_times
from emaae.models import build_model
from emaae.system.errors import UserError
from emaae.system.files import read_json, write_json

N_UNITS = 8


# ---- the formulas


def test_the_window_is_one_at_zero_and_zero_at_whole_trs():
    # sinc(x) sinc(x / 3), by hand: sin(pi/2)/(pi/2) sin(pi/6)/(pi/6) = 6/pi^2 at half a TR
    assert lanczos_window(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), 1.0) == pytest.approx(
        [1, 0, 0, 0, 0]
    )
    assert lanczos_window(np.array([0.5, -0.5]), 1.0) == pytest.approx([6 / np.pi**2] * 2)
    assert lanczos_window(np.array([1.0]), 0.5) == pytest.approx([6 / np.pi**2])


def test_a_constant_encoding_stays_constant_and_silence_is_zero():
    frames, times = np.ones((1000, 1)), (np.arange(1000) + 0.5) / 50
    values = lanczos_resample(frames, times, np.arange(0.5, 40, 1))
    assert values[4:16, 0] == pytest.approx(1, abs=0.01)
    assert values[24:, 0] == pytest.approx(0, abs=1e-6)
    for tr_s in (0.015, 0.01, 0.005):  # shorter than a frame
        values = lanczos_resample(frames, times, np.arange(4, 16, tr_s))
        assert values == pytest.approx(1, abs=0.03)


def test_frequencies_below_the_cutoff_are_kept_and_others_removed():
    times, trs = (np.arange(3000) + 0.5) / 50, np.arange(0.5, 60, 1)
    inside = slice(5, -5)
    slow = np.sin(2 * np.pi * 0.1 * times)
    kept = lanczos_resample(slow[:, None], times, trs)[inside, 0]
    assert kept == pytest.approx(np.sin(2 * np.pi * 0.1 * trs[inside]), abs=0.02)
    fast = np.sin(2 * np.pi * 3.0 * times)
    assert np.abs(lanczos_resample(fast[:, None], times, trs)[inside]).max() < 0.02


def test_a_pause_between_trs_does_not_smooth_more():
    times, trs = (np.arange(3000) + 0.5) / 50, np.arange(0.5, 60, 1)
    frames = np.sin(2 * np.pi * 0.1 * times)[:, None]
    paused = np.concatenate([trs[:30], trs[50:]])
    whole = lanczos_resample(frames, times, trs)
    assert (lanczos_resample(frames, times, paused) == np.delete(whole, slice(30, 50), 0)).all()


def test_delays_are_the_same_rows_later():
    values = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    assert delayed(values, [0, 1, -1]).tolist() == [
        [1, 2, 0, 0, 3, 4],
        [3, 4, 1, 2, 5, 6],
        [5, 6, 3, 4, 0, 0],
    ]
    for far in (*range(3, 8), 2**63):
        assert not delayed(values, [far, -far]).any()


def test_z_scores_use_the_kept_rows_and_constants_become_zero():
    values = np.array([[100.0, 5], [1, 5], [3, 5]])
    scored = zscored(values, slice(1, None))
    assert scored[1:, 0].tolist() == [-1, 1]
    assert scored[0, 0] == 98
    assert scored[:, 1].tolist() == [0, 0, 0]
    assert scored.dtype == np.float32


@pytest.mark.parametrize(
    ("times", "got"),
    [
        ([0, 0.02, 0.02], "0.02, 0.02 s from no. 2 on"),
        ([0, 0.02, 0.01], "0.02, 0.01 s from no. 2 on"),
        ([0, np.nan, 1], "0, nan s from no. 1 on"),
        ([1, 1, 1], "1, 1 s from no. 1 on"),
        ([0, 1, np.inf], "1, inf s from no. 2 on"),
        ([-np.inf, 1, 2], "-inf, 1 s from no. 1 on"),
    ],
)
def test_times_that_do_not_increase_are_refused(times, got):
    expected = "must be finite and each later than the one before, got " + re.escape(got)
    with pytest.raises(UserError, match=expected):
        lanczos_resample(np.ones((3, 1)), np.array(times), np.array([0.5, 1.5]))


def test_columns_are_named_by_unit_and_delay_in_their_order():
    assert regressors.column_names([3, 5], [1, 2]) == [
        "unit_3_tr1",
        "unit_5_tr1",
        "unit_3_tr2",
        "unit_5_tr2",
    ]


# ---- stories


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Encodings of three utterances, by a model of which some units never fire."""
    root = tmp_path_factory.mktemp("encoded")
    write_tree(root / "features", {"s/a": 200, "s/b": 300, "t/c": 250})
    torch.manual_seed(0)
    model = build_model(inner_size=N_UNITS, n_encoder=2, n_decoder=2)
    with torch.no_grad():
        model.encoder[-1].conv.bias[:3] = -1e4
    saved(root, model)
    command = ["encode", "--model", str(root / "best.pth"), "--features", str(root / "features")]
    assert main([*command, "--recursive", "--out", str(root / "z")]) == 0
    return root


def encoding(root, name):
    with np.load(root / "z" / f"{name}.npz") as z, np.load(root / "z" / f"{name}_times.npz") as t:
        return z["features"], t["times"].mean(1).astype(np.float64)


def test_the_manifest_of_encodings_says_which_units_fire(encoded):
    found = json.loads((encoded / "z" / "manifest.json").read_text())
    z = np.concatenate([encoding(encoded, name)[0] for name in ("s/a", "s/b", "t/c")])
    assert found["units"] == N_UNITS
    assert found["fired"] == np.flatnonzero((z > 0).any(0)).tolist()
    assert not {0, 1, 2} & set(found["fired"])
    assert found["fired"]


def test_after_a_killed_process_the_units_that_fire_are_read_from_the_files(encoded, tmp_path):
    root = shutil.copytree(encoded, tmp_path / "copy")
    path = root / "z" / "manifest.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"fired": None}))
    (root / "z" / "s" / "a.npz").unlink()
    command = ["encode", "--model", str(root / "best.pth"), "--features", str(root / "features")]
    assert main([*command, "--recursive", "--out", str(root / "z")]) == 0
    assert json.loads(path.read_text())["fired"] == whole["fired"]


def test_a_story_is_its_utterances_at_their_onsets(encoded):
    spoken = [
        StoryUtterance(str(encoded / "z/s/a.npz"), 1.0),
        StoryUtterance(str(encoded / "z/s/b.npz"), 7.0),
    ]
    design = Design([3, 4, 5], tr_s=0.5, delays=(0, 2), trim=(2, 1))
    times, matrix = regressors.design_matrix("x", spoken, N_UNITS, design)
    (a, at_a), (b, at_b) = encoding(encoded, "s/a"), encoding(encoded, "s/b")
    frames, at = np.concatenate([a, b]), np.concatenate([1 + at_a, 7 + at_b])
    trs = (np.arange(26) + 0.5) * 0.5  # 7 s and 300 frames
    whole = lanczos_resample(frames[:, 3:6], at, trs)
    kept = slice(2, -1)
    scored = (whole - whole[kept].mean(0)) / whole[kept].std(0)
    np.testing.assert_allclose(times, trs[kept])
    np.testing.assert_allclose(matrix[:, :3], scored[kept], atol=1e-4)
    np.testing.assert_allclose(matrix[2:, 3:], scored[2:-3], atol=1e-4)
    assert matrix.dtype == np.float32


def test_times_with_another_number_of_frames_are_refused(encoded, tmp_path):
    root = shutil.copytree(encoded / "z", tmp_path / "z")
    spoken = [StoryUtterance(str(root / "s/a.npz"), 0)]
    np.savez(root / "s/a_times.npz", times=np.float32([[1, 1.02], [1.02, 1.04]]))
    with pytest.raises(UserError, match=r"a_times\.npz has the times of 2 frames, and the"):
        regressors.design_matrix("x", spoken, N_UNITS, Design([3], tr_s=0.01))


@pytest.mark.parametrize(
    "times",
    [np.float32(3), np.zeros((300, 2), np.float32), np.float32([[5, 3]] * 300), np.arange(600)],
    ids=["a number", "constant", "reversed", "whole numbers"],
)
def test_times_that_are_not_those_of_frames_are_refused(encoded, tmp_path, times):
    root = shutil.copytree(encoded / "z", tmp_path / "z")
    times = times.reshape(-1, 2) if times.size == 600 else times
    np.savez(root / "s/a_times.npz", times=times)
    spoken = [StoryUtterance(str(root / "s/a.npz"), 0)]
    with pytest.raises(UserError, match=r"a_times\.npz must have the start and the end of each"):
        regressors.design_matrix("x", spoken, N_UNITS, Design([3], tr_s=0.5))


def test_encodings_without_times_are_refused_since_their_story_may_begin_later(encoded, tmp_path):
    root = shutil.copytree(encoded / "z", tmp_path / "z")
    (root / "s/a_times.npz").unlink()
    spoken = [StoryUtterance(str(root / "s/a.npz"), 0)]
    with pytest.raises(UserError, match=r"a_times\.npz must have the start and the end of each"):
        regressors.design_matrix("x", spoken, N_UNITS, Design([3], tr_s=0.5))


def test_utterances_that_overlap_are_refused(encoded):
    spoken = [
        StoryUtterance(str(encoded / f"z/s/{n}.npz"), onset) for n, onset in (("a", 0), ("b", 2))
    ]
    message = "the story x: utterances must not overlap, and b begins at 2.0.* s, before the one"
    with pytest.raises(UserError, match=message):
        regressors.design_matrix("x", spoken, N_UNITS, Design([0], tr_s=0.5))


# ---- the command


def test_the_command_writes_a_matrix_for_each_story(encoded, tmp_path, capsys):
    table = tmp_path / "onsets.csv"
    rows = "utterance,onset,story\ns/b,7,one\ns/a,1,one\nt/c,0.5,two\n"
    table.write_text(rows, encoding="utf-8-sig", newline="\r\n")  # as Excel writes it
    base = ["regressors", "--encodings", str(encoded / "z"), "--onsets", str(table)]
    assert main([*base, "--tr", "0.5", "--delays", "1", "2", "--out", str(tmp_path / "r")]) == 0
    fired = json.loads((encoded / "z/manifest.json").read_text())["fired"]
    assert f"2 stories, {26 + 11} TRs, {len(fired)} units at 2 delays" in capsys.readouterr().out
    found = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert found["trs"] == {"one": 26, "two": 11}
    assert found["units"] == fired
    assert sorted(found["units"] + found["units_left_out"]) == list(range(N_UNITS))
    assert found["model"]["sha256"]
    with np.load(tmp_path / "r" / "one.npz") as one:
        assert one["X"].shape == (26, 2 * len(fired))
        assert np.isfinite(one["X"]).all()
        assert list(one["columns"][:2]) == [f"unit_{u}_tr1" for u in fired[:2]]
        matrix, times = one["X"], one["tr_times"]
    for form in ("csv", "parquet"):
        out = str(tmp_path / form)
        assert main([*base, "--tr=0.5", "--delays", "1", "2", "--format", form, "--out", out]) == 0
        path = tmp_path / form / f"one.{form}"
        frame = pd.read_csv(path) if form == "csv" else pd.read_parquet(path)
        np.testing.assert_allclose(frame.tr_time, times)
        np.testing.assert_allclose(frame.iloc[:, 1:], matrix, rtol=1e-5, atol=1e-6)


def test_another_design_is_refused_in_the_same_folder(encoded, tmp_path):
    table = tmp_path / "o.csv"
    table.write_text("utterance,onset,story\ns/a,0,one\nt/c,0,two\n")
    base = ["regressors", "--encodings", str(encoded / "z"), "--out", str(tmp_path / "r")]
    command = [*base, "--onsets", str(table), "--tr=0.5"]
    for root in (encoded / "z", Path(os.path.relpath(encoded / "z"))):
        assert main([*command, "--encodings", str(root)]) == 0
    with pytest.raises(UserError, match=r"another design \(see tr_s in its manifest.json\): give"):
        main([*base, "--onsets", str(table), "--tr=0.25"])
    table.write_text("utterance,onset,story\ns/b,0,one\n")
    with pytest.raises(UserError, match=r"another design \(see onsets_and_tr_times in its man"):
        main(command)


def test_a_design_that_was_refused_is_corrected_in_the_same_folder(encoded, tmp_path):
    table = tmp_path / "o.csv"
    command = ["regressors", "--encodings", str(encoded / "z"), "--out", str(tmp_path / "r")]
    command += ["--onsets", str(table), "--tr=0.5"]
    table.write_text("utterance,onset\ns/a,0\ns/b,1\n")
    with pytest.raises(UserError, match="must not overlap"):
        main(command)
    table.write_text("utterance,onset\ns/a,0\ns/b,9\n")
    assert main(command) == 0


def test_regressors_that_would_be_all_zero_are_refused(encoded, tmp_path):
    (tmp_path / "trs.txt").write_text("100 101 102 103")
    base = ["regressors", "--encodings", str(encoded / "z"), "--out", str(tmp_path / "r")]
    message = (
        "the regressors of story s/a are all 0: no encoding changes within its TRs, 100 to 103"
    )
    with pytest.raises(UserError, match=message):
        main([*base, "--tr_times", str(tmp_path / "trs.txt")])


def test_tr_times_are_read_from_one_file_or_a_file_for_each_story(encoded, tmp_path):
    times = np.arange(0.25, 4, 0.5)
    (tmp_path / "t").mkdir()
    for name, shift in (("all", 0), ("t/s/a", 0.1), ("t/s/b", 0.2), ("t/t/c", 0.3)):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\ufeff" + "\n".join(str(t + shift) for t in times))  # as Excel writes it
    base = ["regressors", "--encodings", str(encoded / "z")]
    assert main([*base, "--tr_times", str(tmp_path / "all.txt"), "--out", str(tmp_path / "1")]) == 0
    assert main([*base, "--tr_times", str(tmp_path / "t"), "--out", str(tmp_path / "2")]) == 0
    for out, shift in (("1", 0), ("2", 0.2)):
        with np.load(tmp_path / out / "s" / "b.npz") as found:
            np.testing.assert_allclose(found["tr_times"], times + shift)


@pytest.mark.parametrize(
    ("table", "flags", "says"),
    [
        ("utterance,onset\ns/a,x\n", ["--tr=1"], "onsets.csv:2: onset 'x', expected seconds"),
        ("utterance,onset\n\ns/a,\n", ["--tr=1"], "onsets.csv:3: onset '', expected seconds"),
        (f"utterance,onset\n{'a' * 200_000},1\n", ["--tr=1"], "onsets.csv cannot be read: field"),
        ("utterance,onset\ngone,1\n", ["--tr=1"], "onsets.csv:2: utterance 'gone', expected one"),
        ("name,start\ns/a,1\n", ["--tr=1"], "must have the columns utterance and onset"),
        (
            "utterance,onset\ns/a,1\ns/b,2\n",
            ["--tr=1"],
            "the story story: utterances must not overlap",
        ),
        ("utterance,onset\ns/a,1\n", [], "--tr, the seconds between TRs, or --tr_times"),
        ("utterance,onset\ns/a,1\n", ["--tr=nan"], "--tr must be a finite number, got 'nan'"),
        ("utterance,onset\ns/a,1\n", ["--tr=0"], "--tr must be above 0, got 0.0"),
        ("utterance,onset\ns/a,1\n", ["--tr=1e-9"], "more than 10000000 TRs of 1e-09 s: give"),
        ("utterance,onset\n", ["--tr=1"], "onsets.csv has no rows: expected one for each"),
        ("utterance, onset\ns/a, -9\n", ["--tr=1"], "begins at -9 s, and with --tr the first TR"),
        ("utterance,onset\ns/a,1e12\n", ["--tr=1"], "ends after 1e+12 s, more than 10000000 TRs"),
        ("utterance,onset\ns/a,1\n", ["--tr=9"], "has 1 TRs, and --trim 0 0 leaves fewer than two"),
        ("utterance,onset\ns/a,1\n", ["--tr=1", "--trim", "0", "7"], "leaves fewer than two"),
        ("utterance,onset\ns/a,1\n", ["--tr_times=gone"], "--tr_times gone cannot be read"),
        (
            "utterance,onset\ns/a,1\n",
            ["--tr=1", "--trim", "-1", "0"],
            "--trim must be at least 0, got -1",
        ),
        ("utterance,onset\ns/a,1\n", ["--tr=1", "--delays", "1", "1"], "must differ, got 1 1"),
        (
            "utterance,onset\ns/a,1\n",
            ["--tr=.5", "--out=/dev/null/r"],
            "/dev/null/r cannot be made (Not",
        ),
        ("utterance,onset,story\ns/a,1,../x\n", ["--tr=1"], "onsets.csv:2: the name '../x' must"),
    ],
)
def test_usage_errors_print_one_line(encoded, tmp_path, table, flags, says):
    (tmp_path / "onsets.csv").write_text(table)
    base = ("-m", "emaae", "regressors", "--encodings", str(encoded / "z"))
    more = ("--onsets", str(tmp_path / "onsets.csv"), "--out", str(tmp_path / "r"))
    done = forked(*base, *more, *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_units_are_those_of_the_training_set_if_it_is_given(encoded, tmp_path):
    other = shutil.copytree(encoded / "z", tmp_path / "z")
    found = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(found | {"fired": [0, 4]}))
    base = ["regressors", "--encodings", str(encoded / "z"), "--units_of", str(other)]
    assert main([*base, "--tr=0.5", "--delays", "1", "--out", str(tmp_path / "r")]) == 0
    with np.load(tmp_path / "r" / "s" / "a.npz") as made:
        assert list(made["columns"]) == ["unit_0_tr1", "unit_4_tr1"]
        assert not made["X"][:, 0].any(), "a unit that does not fire here is 0, and not undefined"


def test_a_tree_of_features_is_refused(encoded, tmp_path):
    features = ["regressors", "--encodings", str(encoded / "features"), "--tr=0.5"]
    with pytest.raises(UserError, match="manifest.json does not say .*: expected a tree of enc"):
        main([*features, "--out", str(tmp_path / "r")])


def test_encodings_that_are_not_finished_are_refused(encoded, tmp_path):
    other = shutil.copytree(encoded / "z", tmp_path / "z")
    found = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(found | {"fired": None}))
    with pytest.raises(UserError, match="does not say which units fire"):
        regressors.read_manifest(other)


def test_units_of_another_model_are_refused(encoded, tmp_path):
    other = shutil.copytree(encoded / "z", tmp_path / "z")
    found = json.loads((other / "manifest.json").read_text())
    found["model"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(found))
    base = ["regressors", "--encodings", str(encoded / "z"), "--units_of", str(other)]
    with pytest.raises(UserError, match="--units_of .* has encodings of another model than"):
        main([*base, "--tr=0.5", "--out", str(tmp_path / "r")])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_that_cannot_be_written_whole_leaves_no_file(encoded, tmp_path, monkeypatch, form):
    def full(table, file, **more):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, f"to_{form}", full)
    base = ["regressors", "--encodings", str(encoded / "z"), "--tr=0.5", "--format", form]
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        main([*base, "--out", str(tmp_path / "r")])
    assert [path.name for path in (tmp_path / "r").rglob("*.*")] == ["manifest.json"]


def test_regressors_are_not_written_among_their_encodings(encoded, tmp_path):
    tree = shutil.copytree(encoded / "z", tmp_path / "z")
    command = ["regressors", "--encodings", str(tree), "--tr=0.5", "--out", str(tree / "r")]
    with pytest.raises(UserError, match="z/r is in .*z, which is read: the next call would read"):
        main(command)
    assert not (tree / "r").exists()


@pytest.mark.parametrize("what", ["z", "features"])
def test_the_input_of_regressors_is_not_overwritten(encoded, tmp_path, what):
    tree = shutil.copytree(encoded / what, tmp_path / what)
    before = {path: path.read_bytes() for path in tree.rglob("*.*")}
    command = ["regressors", "--encodings", str(encoded / "z"), "--tr=0.5", "--out", str(tree)]
    with pytest.raises(UserError, match="give another --out"):
        main(command)
    assert {path: path.read_bytes() for path in tree.rglob("*.*")} == before


def test_a_long_story_takes_memory_for_one_utterance_at_a_time(tmp_path):
    rows = ["utterance,onset"]
    rng = np.random.default_rng(0)
    for i in range(40):
        np.savez(tmp_path / f"u{i:02d}.npz", features=rng.random((1500, 64), dtype=np.float32))
        np.savez(tmp_path / f"u{i:02d}_times.npz", times=frame_times(1500))
        rows.append(f"u{i:02d},{i * 31}")
    (tmp_path / "manifest.json").write_text(json.dumps({"units": 64, "fired": list(range(64))}))
    (tmp_path / "o.csv").write_text("\n".join(rows))
    told = regressors.read_stories(tmp_path, tmp_path / "o.csv")
    tracemalloc.start()
    design = Design(range(64), tr_s=2.0, delays=(1,))
    _, matrix = regressors.design_matrix("story", told["story"], 64, design)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert matrix.shape == (620, 64)
    assert peak < 0.4 * 40 * 1500 * 64 * 4


def test_a_long_utterance_takes_memory_for_a_part_of_its_weights(tmp_path):
    np.savez(tmp_path / "u.npz", features=np.ones((30_000, 2), np.float32))
    np.savez(tmp_path / "u_times.npz", times=frame_times(30_000))
    tracemalloc.start()
    spoken = [StoryUtterance(str(tmp_path / "u.npz"), 0)]
    _, matrix = regressors.design_matrix("x", spoken, 2, Design([0, 1], tr_s=0.25, delays=(1,)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert matrix.shape == (2400, 2)
    assert peak < 5e6  # 2400 x 30,000 weights would take 576 MB


def test_the_manifest_of_a_hundred_hours_is_read_again(tmp_path):
    trs = {f"{i // 1000}/{i // 10}/{i // 1000}-{i // 10}-{i:08d}": 60 for i in range(40_000)}
    write_json(tmp_path / "manifest.json", {"made": "regressors", "trs": trs})
    assert (tmp_path / "manifest.json").stat().st_size > 1 << 20
    assert len(read_json(tmp_path / "manifest.json")["trs"]) == 40_000
