"""Audio becomes features, through SPARC's own code with the tiny model of `tiny_sparc`."""

import contextlib
import importlib.util
import io
import os
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sparc import as_published, voice, write_hub

from emaae.__main__ import main
from emaae.corpus.extract import (
    INSTALL_COMMAND,
    Audio,
    _batches,
    _import_sparc,
    _n_frames,
    extract,
    load_coder,
)
from emaae.data import check
from emaae.system.errors import UserError

Said = namedtuple("Said", "status stdout stderr")

soundfile = pytest.importorskip("soundfile", reason=INSTALL_COMMAND)
pytestmark = pytest.mark.skipif(importlib.util.find_spec("sparc") is None, reason=INSTALL_COMMAND)

RATE = 16_000
# CREPE's pitch is dithered by up to 20 cents either way.
DITHER = 2 ** (40 / 1200) - 1


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return Path(write_hub(tmp_path_factory.mktemp("hub"))["HF_HOME"], "hub")


def write(path, sound: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Recordings in LibriSpeech's tree, and broken recordings."""
    root = tmp_path_factory.mktemp("audio")
    write(root / "103" / "1240" / "103-1240-0000.flac", voice(0.6, 1))
    write(root / "103" / "1240" / "103-1240-0001.flac", voice(0.595, 2))  # as many frames
    write(root / "103" / "1241" / "103-1241-0000.WAV", voice(0.5, 3))
    stereo = np.stack([voice(0.46, 4), voice(0.46, 5)], 1)
    write(root / "stereo.wav", stereo)
    write(root / "mixed.wav", stereo.mean(1))
    write(root / "fast.wav", voice(0.42, 6, 44_100), 44_100)
    write(root / "shortest.wav", voice(0.385, 7))

    write(root / "bad" / "empty.wav", np.zeros(0))
    (root / "bad" / "nothing.flac").touch()
    (root / "bad" / "text.wav").write_text("this is no audio")
    write(root / "bad" / "short.wav", voice(0.3849, 8))
    write(root / "bad" / "silent.wav", np.zeros(RATE))
    write(root / "bad" / "long.flac", np.zeros(61 * RATE))
    write(root / "bad" / "cut.flac", voice(1.0, 9))
    whole = (root / "bad" / "cut.flac").read_bytes()
    (root / "bad" / "cut.flac").write_bytes(whole[: len(whole) // 2])
    write(root / "bad" / "twice.flac", voice(0.5, 10))
    write(root / "bad" / "twice.wav", voice(0.5, 11))
    write(root / "bad" / "x_times.wav", voice(0.5, 12))
    os.mkfifo(root / "bad" / "pipe.wav")
    (root / "notes.txt").write_text("ignored")
    (root / "._stereo.wav").write_text("left behind by a file manager")
    return root


GOOD = {
    "103/1240/103-1240-0000": 29,
    "103/1240/103-1240-0001": 29,
    "103/1241/103-1241-0000": 24,
    "stereo": 22,
    "mixed": 22,
    "fast": 20,
    "shortest": 19,
}
BAD = {
    "empty.wav": "at least 0.39 s",
    "nothing.flac": "not readable audio",
    "text.wav": "not readable audio",
    "short.wav": "at least 0.39 s",
    "silent.wav": "silent",
    "long.flac": "at most 60 s",
    "cut.flac": "",  # the message depends on the library
    "twice.flac": "rename or remove one",
    "twice.wav": "rename or remove one",
    "x_times.wav": "file of times",
    "pipe.wav": "pipe or a device",
}


@pytest.fixture(scope="module")
def extracted(corpus, hub, tmp_path_factory):
    """What the command said, the exit status, and where it wrote."""
    tree, out, errors = tmp_path_factory.mktemp("features"), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(["extract", f"--audio_dir={corpus}", f"--out_dir={tree}", "--device=cpu"])
    return Said(status, out.getvalue(), errors.getvalue()), tree


@pytest.fixture(scope="module")
def coder(hub):
    return load_coder(_import_sparc(), torch.device("cpu"))


def features(out, identity: str) -> np.ndarray:
    return np.load(out / f"{identity}.npz")["features"]


def test_every_good_file_and_no_other_has_features_of_its_length(extracted):
    done, out = extracted
    found = {str(p.relative_to(out))[:-4] for p in out.rglob("*.npz")}
    assert found == set(GOOD) | {f"{name}_times" for name in GOOD}
    for name, n_frames in GOOD.items():
        assert features(out, name).shape == (n_frames, 14), name
    assert f"{len(GOOD)} utterances extracted" in done.stdout


def test_bad_files_are_counted_and_named_with_the_reason(extracted):
    done, _ = extracted
    assert done.status == 1
    lines = done.stderr.splitlines()
    for name, why in BAD.items():
        assert any(f"/bad/{name} " in line and why in line for line in lines), (name, done.stderr)
    assert lines[-1] == f"{len(BAD)} file(s) without features"


def test_the_check_of_feature_trees_finds_nothing_wrong_in_the_columns(extracted):
    (tree,) = check.check([extracted[1]], True)
    assert not set(tree.findings) - {"sign", "scale", "twice"}  # of random weights; mixed is stereo
    assert 90 < features(extracted[1], "mixed")[:, 13].mean() < 150  # a voice of 120 Hz


def test_frames_have_their_own_times(extracted):
    times = np.load(extracted[1] / "stereo_times.npz")["times"]
    assert times.shape == (22, 2)
    assert times.dtype == np.float32
    centres = (320 * np.arange(22) + 200) / RATE
    np.testing.assert_allclose(times.mean(1), centres, atol=1e-6)
    assert (np.diff(times, axis=0) > 0).all()


def test_channels_are_averaged(extracted):
    stereo, mixed = (features(extracted[1], name) for name in ("stereo", "mixed"))
    np.testing.assert_allclose(stereo[:, :13], mixed[:, :13], atol=0.03)  # 16 bits, rounded twice
    np.testing.assert_allclose(stereo[:, 13], mixed[:, 13], rtol=DITHER)


def test_another_rate_is_resampled(extracted, coder, tmp_path):
    write(tmp_path / "fast.wav", voice(0.42, 6))
    extract(tmp_path, tmp_path / "out")
    # The noise differs, which is drawn at each rate.
    a, b = (features(out, "fast")[:, 13] for out in (extracted[1], tmp_path / "out"))
    np.testing.assert_allclose(a, b, rtol=0.05)


def test_published_weights_are_those_that_are_used(hub, coder):
    (path,) = hub.glob("models--microsoft--wavlm-large/snapshots/*/pytorch_model.bin")
    published = torch.load(path)
    used = coder.inverter.speech_model.state_dict()
    assert {as_published(name) for name in used} == set(published)
    assert all(torch.equal(used[name], published[as_published(name)]) for name in used)


def test_columns_are_those_of_sparc_from_the_first_frame_on(extracted, corpus, coder):
    path = corpus / "103" / "1241" / "103-1241-0000.WAV"
    code = coder.encode(str(path))
    found = features(extracted[1], "103/1241/103-1241-0000")
    assert len(code["ema"]) < len(code["pitch"]) < len(code["loudness"])
    np.testing.assert_allclose(found[:, :12], code["ema"], atol=1e-5)
    np.testing.assert_allclose(found[:, 12], code["loudness"][: len(found), 0], atol=1e-6)
    np.testing.assert_allclose(found[:, 13], code["pitch"][: len(found), 0], rtol=DITHER)


def test_features_do_not_depend_on_the_files_beside_them(extracted, corpus, coder, tmp_path):
    for name in ("103/1240/103-1240-0000", "103/1240/103-1240-0001"):
        alone = tmp_path / name.rpartition("/")[2]
        alone.mkdir()
        (alone / "x.flac").symlink_to(corpus / f"{name}.flac")
        extract(alone, alone)
        found, together = features(alone, "x"), features(extracted[1], name)
        np.testing.assert_allclose(found[:, :12], together[:, :12], atol=1e-5)
        assert np.array_equal(found[:, 12:], together[:, 12:])


def test_a_repeated_run_keeps_complete_features_and_makes_the_rest_again(
    extracted, coder, tmp_path
):
    for i, name in enumerate(("kept", "cut", "untimed", "short")):
        write(tmp_path / f"{name}.wav", voice(0.5, i))
    assert extract(tmp_path, tmp_path).n_new == 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:500])
    (tmp_path / "untimed_times.npz").unlink()
    np.savez(tmp_path / "short_times.npz", times=np.zeros((3, 2), np.float32))
    again = extract(tmp_path, tmp_path)
    assert (again.n_kept, again.n_new) == (1, 3)
    assert (tmp_path / "cut.npz").read_bytes() == whole
    for name in ("kept", "kept_times"):
        path = tmp_path / f"{name}.npz"
        assert path.stat().st_mtime_ns == before[path]
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()
    assert extract(tmp_path, tmp_path).n_kept == 4


def test_a_batch_too_large_for_memory_is_halved(coder, tmp_path, monkeypatch):
    for i in range(5):
        write(tmp_path / f"{i}.wav", voice(0.4, i))
    inversion = type(coder.inverter)
    sizes, real = [], inversion.__call__

    def small(self, wavs, outputs):
        sizes.append(len(wavs))
        if len(wavs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, wavs, outputs)

    monkeypatch.setattr(inversion, "__call__", small)
    result = extract(tmp_path, tmp_path)
    assert (result.n_new, result.broken) == (5, {})
    assert max(sizes) == 5
    assert sizes.count(1) == 5


def test_a_batch_holds_no_more_audio_than_it_is_told(coder):
    files = [Audio(str(i), "", 16000 + 80 * (i % 3)) for i in range(40)]
    batches = _batches(coder, files, 5.0)
    assert sorted(a for batch in batches for a in batch) == sorted(files)
    assert max(len(batch) for batch in batches) == 5
    assert {len({_n_frames(coder, a.n_samples) for a in batch}) for batch in batches} == {1}


def test_settings_that_pad_the_audio_shift_the_times(coder, tmp_path, monkeypatch):
    write(tmp_path / "a.wav", voice(0.5, 1))
    extract(tmp_path, tmp_path / "plain")
    monkeypatch.setattr(coder.inverter, "zero_pad", True)
    monkeypatch.setattr("emaae.corpus.extract.load_coder", lambda *_: coder)
    extract(tmp_path, tmp_path / "padded")
    plain, padded = (np.load(tmp_path / n / "a_times.npz")["times"] for n in ("plain", "padded"))
    assert (len(plain), len(padded)) == (24, 25)
    np.testing.assert_allclose(plain[:, 0] - padded[:24, 0], 160 / RATE, atol=1e-6)


def test_too_many_channels_are_refused_with_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("emaae.corpus.extract.MAX_SAMPLES", 10_000)
    write(tmp_path / "a.wav", np.stack([voice(0.5, i) for i in range(2)], 1))
    (why,) = extract(tmp_path, tmp_path).broken.values()
    assert "has 0.5 s, 2 channel(s) and 16000 Hz" in why
    assert "at most 60 s, and 10,000 values in all channels" in why


def test_a_tree_that_is_complete_needs_neither_sparc_nor_its_weights(
    extracted, corpus, monkeypatch
):
    monkeypatch.setitem(sys.modules, "sparc", None)
    assert extract(corpus / "103", extracted[1] / "103").n_kept == 3
    with pytest.raises(UserError, match="not installed: pip install -r requirements-audio.txt"):
        extract(corpus / "103", extracted[1] / "elsewhere")


def test_missing_weights_print_one_line_that_says_how_to_get_them(coder, tmp_path):
    write(tmp_path / "a.wav", voice(0.5, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        with pytest.raises(UserError, match="hf download microsoft/wavlm-large") as error:
            extract(tmp_path, tmp_path)
    assert "HF_HUB_OFFLINE=1" in str(error.value)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--audio_dir=nowhere", "--out_dir=x"], "--audio_dir nowhere does not exist"),
        (["--audio_dir=tests", "--out_dir=x"], "tests holds no .flac or .wav files"),
        (
            ["--audio_dir=tests", "--out_dir=x", "--batch_s=nan"],
            "--batch_s must be a finite number",
        ),
    ],
)
def test_a_usage_error_prints_one_line(flags, line):
    with pytest.raises(UserError, match=line):
        main(["extract", *flags])
