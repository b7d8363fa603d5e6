"""Does the generated corpus move like recorded speech, in the layout of extracted features?"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy import signal
from scipy.interpolate import CubicSpline

from emaae.__main__ import main
from emaae.data import demo, phones, synthesis
from emaae.data.features import ARTICULATORS as NAMES
from emaae.system.errors import UserError

ARTICULATORS = range(12)
LOUDNESS, PITCH = 12, 13


@pytest.fixture(scope="module")
def corpus():
    """split -> default utterances of seed 0"""
    return {split: demo.generate(split) for split in demo.CORPORA["demo"]}


@pytest.fixture(scope="module", params=[0, 1], ids="seed{}".format)
def statistics(request):
    """The movement statistics of the train split, as defined below, for two seeds."""
    movements = standardised(demo.generate("train", seed=request.param))
    duration_s, peak_speed = strokes(movements)
    f50, f90, f99 = spectral_quantiles_hz(movements)
    pca4, pca6 = explained_by_components(movements, 4, 6)
    return {
        "f50_hz": f50,
        "f90_hz": f90,
        "f99_hz": f99,
        "r_100ms": autocorrelation(movements, lag_frames=5),
        "stroke_s": duration_s,
        "peak_speed_per_amplitude": peak_speed,
        "pca4": pca4,
        "pca6": pca6,
        "r_TBX_TDX": correlation(movements, "TBX", "TDX"),
        "r_TBY_TDY": correlation(movements, "TBY", "TDY"),
        "r_LIX_LIY": correlation(movements, "LIX", "LIY"),
        "r_LIY_LLY": correlation(movements, "LIY", "LLY"),
    }


def standardised(utterances):
    """The (T, 12) articulators of each utterance, z-scored per speaker as recordings are."""
    by_speaker = {}
    for utterance in utterances:
        movement = utterance.features[:, ARTICULATORS].astype(float)
        by_speaker.setdefault(utterance.name.split("/")[0], []).append(movement)
    movements = []
    for of_speaker in by_speaker.values():
        mean = np.concatenate(of_speaker).mean(0)
        sd = np.concatenate(of_speaker).std(0)
        movements += [(movement - mean) / sd for movement in of_speaker]
    return movements


def spectral_quantiles_hz(movements, quantiles=(0.50, 0.90, 0.99)):
    """Frequencies below which 50, 90 and 99 % of the power of the movements lies.

    Welch's method on 2.56 s Hann segments without their means; power is summed over the
    articulators and over all utterances that hold a segment, each counted by its length.
    """
    power = 0
    for movement in movements:
        if len(movement) >= 128:
            hz, density = signal.welch(movement, fs=50, nperseg=128, nfft=1024, axis=0)
            power = power + len(movement) * density.sum(1)
    share = np.cumsum(power) / np.sum(power)
    return np.interp(quantiles, share, hz)


def autocorrelation(movements, lag_frames):
    """Mean over articulators of the lagged covariance over the variance, within utterances."""
    lagged = variance = 0
    for movement in movements:
        x = movement - movement.mean(0)
        lagged = lagged + len(x) * np.mean(x[lag_frames:] * x[:-lag_frames], axis=0)
        variance = variance + np.sum(x**2, axis=0)
    return np.mean(lagged / variance)


def strokes(movements):
    """Median duration in s, and median peak speed over amplitude in 1/s, of single strokes.

    A stroke is what one articulator does between two zero crossings of its velocity (of a cubic
    spline, read at 500 Hz); those below .3 standard deviations are no movements but drift.
    """
    durations_s, speeds = [], []
    for movement in movements:
        frames_s = np.arange(len(movement)) / 50
        instants_s = np.arange(0, frames_s[-1], 0.002)
        spline = CubicSpline(frames_s, movement)
        for x, velocity in zip(spline(instants_s).T, spline(instants_s, 1).T, strict=True):
            turns = np.flatnonzero(np.diff(np.sign(velocity))) + 1
            if len(turns) < 2:
                continue
            amplitude = np.abs(np.diff(x[turns]))
            peak_speed = np.maximum.reduceat(np.abs(velocity), turns)[:-1]
            large = amplitude >= 0.3
            durations_s.append(0.002 * np.diff(turns)[large])
            speeds.append((peak_speed / np.where(large, amplitude, 1))[large])
    return np.median(np.concatenate(durations_s)), np.median(np.concatenate(speeds))


def explained_by_components(movements, *n_components):
    """Share of the variance of single frames in the first n principal components."""
    eigenvalues = np.linalg.eigvalsh(np.cov(np.concatenate(movements).T))[::-1]
    return [eigenvalues[:n].sum() / eigenvalues.sum() for n in n_components]


def correlation(movements, first, second):
    x = np.concatenate(movements).T
    i, j = NAMES.index(first), NAMES.index(second)
    return np.corrcoef(x[i], x[j])[0, 1]


# Real articulography has the values in the last column.
BANDS = [
    ("f50_hz", 1.20, 1.55),  # 1.29
    ("f90_hz", 3.20, 3.75),  # 3.38
    ("f99_hz", 5.90, 6.70),  # 5.95
    ("r_100ms", 0.42, 0.54),  # .52
    ("stroke_s", 0.128, 0.152),  # .140
    ("peak_speed_per_amplitude", 12.5, 14.0),  # 12.8
    ("pca4", 0.76, 0.88),  # .77
    ("pca6", 0.88, 0.94),  # .91
    ("r_TBX_TDX", 0.80, 0.93),  # .91
    ("r_TBY_TDY", 0.62, 0.80),  # .74
    ("r_LIX_LIY", -0.92, -0.66),  # -.68
    ("r_LIY_LLY", 0.42, 0.72),  # .69
]


@pytest.mark.parametrize(("name", "low", "high"), BANDS, ids=[name for name, *_ in BANDS])
def test_movements_have_the_statistics_of_recorded_speech(statistics, name, low, high):
    assert low <= statistics[name] <= high


def test_a_stroke_of_known_shape_has_the_statistics_of_its_formula():
    t = np.arange(500) / 50
    cosine = np.cos(2 * np.pi * 4 * t)[:, None] * np.ones(12)
    duration_s, peak_speed = strokes([cosine])
    assert duration_s == pytest.approx(1 / 8, rel=0.01)
    assert peak_speed == pytest.approx(4 * np.pi, rel=0.01)
    assert spectral_quantiles_hz([cosine])[0] == pytest.approx(4, abs=0.1)
    assert autocorrelation([cosine], 5) == pytest.approx(np.cos(2 * np.pi * 0.4), abs=0.02)


def test_articulators_have_unit_spread(corpus):
    x = np.concatenate([u.features[:, ARTICULATORS] for u in corpus["train"]])
    assert x.std() == pytest.approx(1, abs=0.05)
    assert np.all((x.std(0) > 0.6) & (x.std(0) < 1.5))


def test_a_gesture_moves_like_a_critically_damped_spring():
    w, t = 2 * np.pi * 6, synthesis.STEP_S * np.arange(1, 301)
    target = np.full((300, 1, 1), 2.0)
    x = synthesis._integrate(target, np.full_like(target, w**2))[:, 0, 0]
    np.testing.assert_allclose(x, 2 * (1 - (1 + w * t) * np.exp(-w * t)), atol=0.06)
    assert x[-1] == pytest.approx(2, abs=1e-4)


def test_the_default_corpus_is_four_minutes_of_train_and_one_of_val_and_of_test(corpus):
    minutes = {s: sum(len(u.features) for u in us) / 3000 for s, us in corpus.items()}
    assert minutes == pytest.approx({"train": 4, "val": 1, "test": 1}, rel=0.15)


@pytest.mark.parametrize("split", demo.CORPORA["demo"])
def test_durations_are_distributed_as_in_librispeech(corpus, split):
    durations_s = [u.phones[-1].end_s / 0.3 for u in corpus[split]]
    expected = demo.CORPORA["demo"][split].durations_s[2:5]
    np.testing.assert_allclose(np.quantile(durations_s, [0.25, 0.5, 0.75]), expected, rtol=0.12)


def test_scale_multiplies_durations():
    short, long = (demo.generate("val", n_utterances=4, scale=scale) for scale in (0.2, 0.4))
    ratio = [b.phones[-1].end_s / a.phones[-1].end_s for a, b in zip(short, long, strict=True)]
    np.testing.assert_allclose(ratio, 2)


def test_even_the_shortest_utterance_is_spoken():
    for utterance in demo.generate("test", n_utterances=8, scale=1e-3):
        assert len(utterance.features) == 19
        assert any(phone.label in phones.VOWELS for phone in utterance.phones)
        assert np.isfinite(utterance.features).all()


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    once, again, other = (demo.generate("val", seed, n_utterances=4) for seed in (3, 3, 4))
    for a, b, c in zip(once, again, other, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
        assert (a.phones, a.gestures) == (b.phones, b.gestures)
        assert a.phones != c.phones


def test_splits_with_the_same_seed_say_different_things(corpus):
    said = {
        split: {tuple(phone.label for phone in u.phones) for u in utterances}
        for split, utterances in corpus.items()
    }
    assert not said["train"] & said["val"]
    assert not said["val"] & said["test"]


def test_fewer_utterances_are_the_first_of_more(corpus, monkeypatch):
    monkeypatch.setattr(demo, "CHUNK_UTTERANCES", 4)
    for few, many in zip(demo.generate("val", n_utterances=10), corpus["val"], strict=False):
        assert few.name == many.name
        assert few.gestures == many.gestures
        np.testing.assert_array_equal(few.features, many.features)


def test_no_speaker_is_in_two_splits(corpus):
    speakers = {s: {u.name.split("/")[0] for u in us} for s, us in corpus.items()}
    assert {s: len(names) for s, names in speakers.items()} == {"train": 8, "val": 4, "test": 4}
    assert len(set.union(*speakers.values())) == 16


def test_names_are_unique_and_shaped_like_librispeech(corpus):
    names = [u.name for utterances in corpus.values() for u in utterances]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"(\d+)/(\d+)/\1-\2-\d{4}", name)


def test_features_are_finite_and_have_a_frame_per_20_ms(corpus):
    for utterance in corpus["train"] + corpus["val"] + corpus["test"]:
        n_samples = round(16000 * utterance.phones[-1].end_s)
        assert utterance.features.shape == ((n_samples - 400) // 320 + 1, 14)
        assert utterance.features.dtype == np.float32
        assert np.isfinite(utterance.features).all()


def test_times_strictly_increase_around_the_frame_centres(corpus):
    for utterance in corpus["test"]:
        times = utterance.times
        assert (times.shape, times.dtype) == ((len(utterance.features), 2), np.float32)
        assert (np.diff(times, axis=0) > 0).all()
        centres_s = (320 * np.arange(len(times)) + 200) / 16000
        np.testing.assert_allclose(times.mean(1), centres_s, atol=1e-5)
        np.testing.assert_allclose(times[:, 1] - times[:, 0], 0.02, atol=1e-5)


def test_frame_centres_are_instants_of_the_simulation():
    first_s = synthesis.FIRST_INSTANT_S + synthesis.FIRST_FRAME_STEP * synthesis.STEP_S
    assert first_s == pytest.approx(200 / 16000)
    assert pytest.approx(320 / 16000) == synthesis.STEPS_PER_FRAME * synthesis.STEP_S


def test_pitch_is_in_range_and_lower_for_men(corpus):
    pitch_hz = {u.name: u.features[:, PITCH] for us in corpus.values() for u in us}
    assert min(hz.min() for hz in pitch_hz.values()) >= 50
    assert max(hz.max() for hz in pitch_hz.values()) <= 550
    men = [np.median(hz) for name, hz in pitch_hz.items() if int(name[:3]) % 2]
    women = [np.median(hz) for name, hz in pitch_hz.items() if int(name[:3]) % 2 == 0]
    assert len(men) == len(women)
    assert np.mean(men) * 1.5 < np.mean(women)


def test_pitch_declines_from_pause_to_pause(corpus):
    changes = []
    for utterance in corpus["train"]:
        ends_s = [phone.end_s for phone in utterance.phones if phone.label == phones.SILENCE]
        starts_s = [phone.start_s for phone in utterance.phones if phone.label == phones.SILENCE]
        centres_s = utterance.times.mean(1)
        for start_s, end_s in zip(ends_s[:-1], starts_s[1:], strict=True):
            octaves = np.log2(utterance.features[:, PITCH])
            group = octaves[(centres_s >= start_s) & (centres_s < end_s)]
            if len(group) >= 50:
                changes.append(
                    12 * (group[-len(group) // 2 :].mean() - group[: len(group) // 2].mean())
                )
    assert -5 < np.mean(changes) < -2


def test_loudness_is_that_of_a_standardised_waveform(corpus):
    for utterance in corpus["val"]:
        loudness = utterance.features[:, LOUDNESS]
        assert (loudness >= 0).all()
        assert np.sqrt(np.mean((1.25 * loudness) ** 2)) == pytest.approx(1, abs=1e-4)


def frames_of(utterance, labels):
    """(T,) whether each frame's centre lies in a phone with one of these labels."""
    centres_s = utterance.times.mean(1)
    inside = np.zeros(len(centres_s), dtype=bool)
    for label, start_s, end_s in utterance.phones:
        if label in labels:
            inside |= (centres_s >= start_s) & (centres_s < end_s)
    return inside


def test_vowels_are_loud_and_closures_are_not(corpus):
    for utterance in corpus["train"]:
        loudness = utterance.features[:, LOUDNESS]
        vowels = loudness[frames_of(utterance, phones.VOWELS)]
        silence = loudness[frames_of(utterance, [phones.SILENCE])]
        assert np.median(vowels) > 10 * np.median(silence)


def test_phones_follow_each_other_without_gaps(corpus):
    for utterance in corpus["train"]:
        labels = [phone.label for phone in utterance.phones]
        assert labels[0] == labels[-1] == phones.SILENCE
        assert set(labels) <= {phones.SILENCE, *phones.VOWELS, *phones.CONSONANTS}
        assert utterance.phones[0].start_s == 0
        for before, after in zip(utterance.phones[:-1], utterance.phones[1:], strict=True):
            assert before.start_s < before.end_s == after.start_s


def test_silence_at_both_ends_lasts_a_fifth_to_half_a_second(corpus):
    for utterance in corpus["train"]:
        if utterance.phones[-1].end_s > 2.5:
            for _, start_s, end_s in (utterance.phones[0], utterance.phones[-1]):
                assert 0.2 - 1e-6 <= end_s - start_s <= 0.5 + 1e-6


def test_lips_are_closed_during_b_p_and_m(corpus):
    closed, open_ = [], []
    for utterance in corpus["train"]:
        upper, lower = (utterance.features[:, NAMES.index(lip)] for lip in ("ULY", "LLY"))
        aperture = upper - lower
        labial = frames_of(utterance, ["B", "P", "M"])
        closed.append(aperture[labial])
        open_.append(aperture[~labial])
    closed, open_ = np.concatenate(closed), np.concatenate(open_)
    assert closed.mean() < open_.mean() - 1.5 * open_.std()
    assert np.quantile(closed, 0.9) < np.quantile(open_, 0.25)


def test_gestures_of_consonants_reach_the_targets_of_the_score(corpus):
    missed, missed_elsewhere = [], []
    for utterance in corpus["train"]:
        centres_s = utterance.times.mean(1)
        for gesture in utterance.gestures:
            if gesture.phone in phones.CONSONANTS and gesture.weight == 1:
                x = utterance.features[:, NAMES.index(gesture.channel)]
                distance = np.abs(x - gesture.target)
                late = (centres_s > gesture.end_s - 0.04) & (centres_s < gesture.end_s)
                missed.append(distance[late].mean())
                missed_elsewhere.append(distance.mean())
    assert np.mean(missed) < 0.35 * np.mean(missed_elsewhere)


def test_a_tree_holds_what_was_generated(tmp_path, corpus):
    counts = demo.write_tree(tmp_path, n_utterances=6)
    assert {split: count["utterances"] for split, count in counts.items()} == dict.fromkeys(
        counts, 6
    )
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3 * 3 * 6
    for split, utterances in corpus.items():
        assert counts[split]["frames"] == sum(len(u.features) for u in utterances[:6])
        for utterance in utterances[:6]:
            path = f"{tmp_path}/{split}/{utterance.name}"
            with np.load(f"{path}.npz") as archive:
                assert archive.files == ["features"]
                np.testing.assert_array_equal(archive["features"], utterance.features)
            with np.load(f"{path}_times.npz") as archive:
                assert archive.files == ["times"]
                np.testing.assert_array_equal(archive["times"], utterance.times)
            with open(f"{path}_score.json") as file:
                score = json.load(file)
            assert [demo.Phone(**phone) for phone in score["phones"]] == utterance.phones
            assert [demo.Gesture(**g) for g in score["gestures"]] == utterance.gestures


def test_recordings_are_not_mixed_with_generated_speech(tmp_path):
    path = tmp_path / "val" / "103" / "mine.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, features=np.zeros((9, 14), np.float32))
    with pytest.raises(UserError, match="mine.npz was not generated: do not mix"):
        demo.write_tree(tmp_path, n_utterances=1)
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]
    path.unlink()
    for _ in range(2):
        demo.write_tree(tmp_path, n_utterances=1)


def test_a_tree_has_the_same_bytes_each_time_and_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "CHUNK_UTTERANCES", 2)  # three parts a split
    counts, trees = [], []
    for name, jobs in (("once", 1), ("again", 1), ("together", 3)):
        root = tmp_path / name
        counts.append(demo.write_tree(root, seed=2, n_utterances=5, scale=0.1, jobs=jobs))
        trees.append({p.relative_to(root): p.read_bytes() for p in root.rglob("*.*")})
    assert len(trees[0]) == 3 * 3 * 5
    assert trees[0] == trees[1] == trees[2]
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells processes of it")
def test_a_killed_program_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "emaae", "demo-data", f"--out={tmp_path}", "--jobs=2"]
    process = subprocess.Popen([*command, "--like=librispeech-100h"], cwd=ROOT)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2 and any(tmp_path.rglob("*.npz")))
    workers = [Path("/proc", number) for number in children.read_text().split()]
    process.kill()
    process.wait()
    wait_until(lambda: not any(worker.exists() for worker in workers))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_long_utterances_are_simulated_in_smaller_groups():
    (whole,) = demo._chunks("val", 0, 28, 1.0, "demo")
    stories = demo._chunks("val", 0, 28, 10.0, "demo")
    assert all(sum(one.durations_s) <= demo.CHUNK_S for one in stories)
    durations_s = [duration_s for one in stories for duration_s in one.durations_s]
    assert durations_s == pytest.approx([10 * duration_s for duration_s in whole.durations_s])
    assert {len(one.durations_s) for one in demo._chunks("val", 0, 28, 90.0, "demo")} == {1}


def test_an_utterance_is_the_same_whatever_is_simulated_with_it(monkeypatch):
    together = demo.generate("val", n_utterances=4)
    monkeypatch.setattr(demo, "CHUNK_S", 1.0)
    alone = demo.generate("val", n_utterances=4)
    assert all((one.features == other.features).all() for one, other in zip(together, alone))
    assert demo.generate("val", n_utterances=0) == []


def test_utterances_longer_than_features_may_be_are_refused_before_any_is_written(tmp_path):
    # train ends at 24.52 s, val at 32.65 s: times 500 the one is below 4 hours, the other above.
    with pytest.raises(UserError, match="--scale 500 gives utterances of 1.* s, expected at most"):
        main(["demo-data", "--out", str(tmp_path), "--scale=500"])
    assert not any(tmp_path.iterdir())


def test_a_large_corpus_has_the_numbers_of_librispeech_and_no_speaker_in_two_splits():
    splits = demo.CORPORA["librispeech-100h"]
    assert [recipe.n_utterances for recipe in splits.values()] == [28_539, 2_703, 2_620]
    assert [len(recipe.speakers) for recipe in splits.values()] == [251, 40, 40]
    speakers = [number for recipe in splits.values() for number in recipe.speakers]
    assert len(speakers) == len(set(speakers)) == 331
    hours = sum(
        sum(p.durations_s) for p in demo._chunks("train", 0, None, None, "librispeech-100h")
    )
    assert hours / 3600 == pytest.approx(100.6, rel=0.02)
    (few,) = demo.generate("val", n_utterances=1, like="librispeech-100h")
    assert few.name == "2001/2001000/2001-2001000-0000"
    assert 1.4 < few.phones[-1].end_s < 33


@pytest.mark.parametrize(
    ("flag", "range"),
    [
        ("--n_utterances=0", "at least 1 and at most 100000, got 0"),
        ("--n_utterances=-3", "at least 1 and at most 100000, got -3"),
        ("--scale=0", "above 0, got 0"),
        ("--scale=nan", "a finite number, got 'nan'"),
        ("--seed=-1", "at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(tmp_path, flag, range):
    with pytest.raises(UserError, match=f"{flag.partition('=')[0]} must be {range}"):
        main(["demo-data", "--out", str(tmp_path), flag])


def test_an_impossible_name_of_a_tree_is_refused():
    with pytest.raises(UserError, match="--out must be text that is not empty, got ''"):
        main(["demo-data", "--out", ""])


def test_an_unknown_split_raises_value_error():
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        demo.generate("dev")
