"""Encoding and decoding corpora: windows change nothing, and interrupted trees are continued."""

import hashlib
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import program, saved, small_run, speech, stir, write_tree
from forked import forked

import train
from emaae.__main__ import main
from emaae.corpus import encodings
from emaae.corpus.encode import NamedFrames, decode, decode_each, encode, encode_each
from emaae.data.features import frame_times
from emaae.loading import load_model
from emaae.models import NORMS, CNNAutoEncoder
from emaae.system.errors import BadFile, UserError

C = 24


def random_model(norm="none", n_encoder=3, n_decoder=3, seed=0) -> CNNAutoEncoder:
    """An untrained model with biases and batch statistics that are not 0."""
    torch.manual_seed(seed)
    model = CNNAutoEncoder(13, C, n_encoder, n_decoder, norm=norm)
    stir(model, 0.3)
    x = torch.from_numpy(raw(400))
    model.normalise(x.mean(0), x.std(0))
    return model.eval()


def raw(n_frames, seed=0) -> np.ndarray:
    return np.delete(speech(n_frames, seed), 12, axis=1)


@torch.no_grad()
def whole(function, frames) -> np.ndarray:
    return function(torch.from_numpy(frames).T[None])[0].T.numpy()


LENGTHS = {"103/1240/103-1240-0000": 70, "103/1240/103-1240-0001": 68, "a/x": 1, "b/x": 150}


@pytest.fixture
def place(tmp_path):
    """A model, its folder, a feature tree, and a place for encodings."""
    model = random_model("batch")
    saved(tmp_path / "model", model)
    write_tree(tmp_path / "features", LENGTHS)
    return tmp_path


def run(verb, place, out="out", *more, source=None) -> int:
    source = source or {"encode": "features", "decode": "out"}[verb]
    flag = {"encode": "--features", "decode": "--encodings"}[verb]
    command = [verb, f"--model={place / 'model'}", f"{flag}={place / source}", "--recursive"]
    return main([*command, f"--out={place / out}", "--device=cpu", *more])


def features(place, name) -> np.ndarray:
    return np.delete(np.load(place / f"features/{name}.npz")["features"], 12, axis=1)


def out_files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ---- windows


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_blocks", [2, 3, 4, 5])
def test_encoding_in_windows_equals_encoding_the_whole_utterance(norm, n_blocks):
    model = random_model(norm, n_blocks, n_blocks)
    for n_frames in (1, 5, 64, 100):
        x = raw(n_frames)
        z = whole(model.encode, x)
        y = whole(model.decode, z)
        for at_once in (1, 7, 64, 1000):
            np.testing.assert_allclose(encode(model, x, at_once), z, atol=1e-6, rtol=1e-6)
            difference = (decode(model, z, at_once) - y) / model.sd.numpy()
            assert np.abs(difference).max() < 2e-6


def test_a_window_with_too_little_context_gives_another_encoding(monkeypatch):
    model, x = random_model(), raw(100)
    monkeypatch.setattr(model, "receptive_field", lambda: 7)
    assert not np.allclose(encode(model, x, 20), whole(model.encode, x), atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_an_encoding_does_not_depend_on_what_else_is_in_the_batch(norm, training):
    model = random_model(norm).train(training)
    lengths = (90, 31, 64, 1, 7)
    utterances = [raw(n, seed=n) for n in lengths]

    for at_once in (40, 500):
        done = encode_each(model, [NamedFrames(len(x), x) for x in utterances], at_once)
        together = [(source.name, np.concatenate(list(parts))) for source, parts in done]
        assert [name for name, _ in together] == list(lengths)
        for x, (_, z) in zip(utterances, together):
            np.testing.assert_allclose(z, encode(model, x), rtol=1e-5, atol=1e-5)


def test_windows_of_several_utterances_share_a_batch(monkeypatch):
    model, calls = random_model(), []
    sources = [NamedFrames(n, whole(model.encode, raw(n))) for n in (10, 9, 8)]
    once = model.decode
    monkeypatch.setattr(model, "decode", lambda x, mask: calls.append(x.shape[0]) or once(x, mask))
    assert len([list(parts) for _, parts in decode_each(model, sources, 100)]) == 3
    assert calls == [3]


MEMORY = """
import resource, sys
from pathlib import Path
from emaae.data.load import list_source
from emaae.corpus.encode import encode_tree, open_model
root = Path(sys.argv[1])
with open_model(root / "model", "cpu") as (model, made_by):
    peaks = []
    for n in ("short", "long"):
        encode_tree(model, list_source(str(root / n), False), root / "out" / n, "sparse", made_by)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
def test_a_long_utterance_takes_the_memory_of_features_and_nonzero_values(tmp_path):
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 256, 2, 2)
    model.normalise(torch.from_numpy(raw(1000).mean(0)), torch.from_numpy(raw(1000).std(0)))
    torch.nn.init.constant_(model.encoder[-1].conv.bias, -1.0)  # most of it is 0
    saved(tmp_path / "model", model)
    n_frames = 100_000  # its encoding would have 102 MB, its features 5.6 MB
    for name, n in (("short", 6_000), ("long", n_frames)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", features=np.tile(speech(1000, 0), (n // 1000, 1)))
    done = program("-c", MEMORY, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 80
    assert encodings.read_encoding(tmp_path / "out/long/x.npz", 256).shape == (n_frames, 256)


# ---- trees


def test_encodings_are_a_tree_of_the_same_names_with_increasing_times(place):
    assert run("encode", place) == 0
    names = [f"{name}{end}" for name in LENGTHS for end in (".npz", "_times.npz")]
    assert out_files(place / "out") == sorted([".lock", "manifest.json", *names])
    model = load_model(place / "model")
    for name, n_frames in LENGTHS.items():
        with np.load(place / f"out/{name}.npz") as found:
            assert found.files == ["features"]
            z = found["features"]
        assert (z.shape, z.dtype) == ((n_frames, C), np.float32)
        np.testing.assert_allclose(z, whole(model.encode, features(place, name)), atol=1e-6)
        times = np.load(place / f"out/{name}_times.npz")["times"]
        assert times.shape == (n_frames, 2)
        assert (np.diff(times, axis=0) > 0).all()
        assert (times[:, 1] > times[:, 0]).all()


def test_frames_are_centred_where_the_extractors_are():
    times = frame_times(180_000)
    assert times.mean(1)[:3] == pytest.approx([0.0125, 0.0325, 0.0525])
    assert times.mean(1)[-1] == pytest.approx((320 * 179_999 + 200) / 16000, abs=1e-3)
    assert (np.diff(times, axis=0) > 0).all()


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (np.float32([[3, 3.02], [3.02, 3.04], [3.04, 3.06]]), True),
        (np.tile(np.float32([0, 0.06]), (3, 1)), False),
        (np.float32([[3, 3.02], [3.02, 3.04]]), False),
        (np.float32([[0, 1], [2, 3], [1, 4]]), False),
        (np.float32([[0, 1], [2, np.inf], [3, np.inf]]), False),
        (np.float32([[5, 3], [6, 4], [7, 5]]), False),
        (None, False),
    ],
)
def test_times_of_each_frame_are_kept_and_other_times_are_replaced(found, kept):
    assert np.array_equal(frame_times(3, found), found if kept else frame_times(3))


def test_times_of_each_frame_are_copied(place):
    own = frame_times(70) + np.float32(17)
    np.savez(place / "features/103/1240/103-1240-0000_times.npz", times=own)
    run("encode", place)
    copied = np.load(place / "out/103/1240/103-1240-0000_times.npz")["times"]
    assert np.array_equal(copied, own)


def test_every_form_holds_the_same_encoding(place):
    for form in ("float32", "float16", "sparse"):
        assert run("encode", place, form, f"--format={form}") == 0
    for name, n_frames in LENGTHS.items():
        z = np.load(place / f"float32/{name}.npz")["features"]
        half = np.load(place / f"float16/{name}.npz")["features"]
        assert half.dtype == np.float16
        assert np.array_equal(half, z.astype(np.float16))
        matrix = scipy.sparse.load_npz(place / f"sparse/{name}.npz")
        assert (matrix.format, matrix.dtype, matrix.shape) == ("csr", np.float32, (n_frames, C))
        assert matrix.nnz == (z > 0).sum() < z.size
        assert np.array_equal(matrix.toarray(), z)


def test_what_float16_cannot_hold_is_refused(place):
    model = random_model()
    with torch.no_grad():
        model.encoder[-1].conv.bias.fill_(1e5)
    saved(place / "model", model)
    with pytest.raises(UserError, match="float16 ends at 65504: use --format float32 or sparse"):
        run("encode", place, "out", "--format=float16")
    assert out_files(place / "out")[:2] == [".lock", "b/x_times.npz"]


@pytest.mark.parametrize("form", ["float32", "sparse"])
@pytest.mark.parametrize("input_dim", [13, 14])
def test_decoded_encodings_are_the_reconstruction_as_a_feature_tree(place, form, input_dim):
    torch.manual_seed(0)
    model = CNNAutoEncoder(input_dim, C, 3, 2)
    model.normalise(torch.full((input_dim,), 100.0), torch.ones(input_dim))
    saved(place / "model", model)
    assert run("encode", place, "out", f"--format={form}") == 0
    assert run("decode", place, "back") == 0
    kept = [i for i in range(14) if i != 12 or input_dim == 14]
    for name, n_frames in LENGTHS.items():
        y = np.load(place / f"back/{name}.npz")["features"]
        assert (y.shape, y.dtype) == ((n_frames, 14), np.float32)
        x = torch.from_numpy(np.load(place / f"features/{name}.npz")["features"][:, kept])
        with torch.no_grad():
            expected = model(x.T[None]).y[0].T
        np.testing.assert_allclose(y[:, kept], expected, rtol=1e-5)
        assert (y[:, 12] == 0).all() == (input_dim == 13)
        times = [np.load(place / f"{tree}/{name}_times.npz")["times"] for tree in ("out", "back")]
        assert np.array_equal(*times)


def test_encodings_are_decoded_only_by_the_model_that_made_them(place):
    assert run("encode", place) == 0
    saved(place / "model", random_model("batch", seed=1))
    with pytest.raises(UserError, match="encodings of another model: name the --model that made"):
        run("decode", place, "back")
    assert not (place / "back").exists()


# ---- continuing


def moments(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in out_files(folder)}


def changed(folder: Path, before: dict[str, int]) -> list[str]:
    now = moments(folder)
    mine = [name for name in now if not name.startswith(".") and name != "manifest.json"]
    return [name for name in mine if before.get(name) != now[name]]


def test_complete_encodings_are_kept_and_incomplete_ones_are_made_again(place, capsys):
    run("encode", place)
    out, before = place / "out", moments(place / "out")
    assert run("encode", place) == 0
    assert "0 utterances written, 4 were there already" in capsys.readouterr().out
    assert changed(out, before) == []

    (out / "a/x.npz").unlink()
    run("encode", place)
    assert changed(out, before) == ["a/x.npz", "a/x_times.npz"]
    before = moments(out)
    content = (out / "b/x.npz").read_bytes()
    (out / "b/x.npz").write_bytes(content[:-100])
    (out / "a/x_times.npz").write_bytes(b"")
    (out / "a" / ".y.npz.99.tmp").write_bytes(b"half")
    run("encode", place)
    assert changed(out, before) == [f"{d}/x{e}.npz" for d in "ab" for e in ("", "_times")]
    assert (out / "b/x.npz").read_bytes() == content
    assert not list(out.rglob("*.tmp"))


def test_encodings_whose_features_are_gone_are_counted(place, capsys):
    run("encode", place)
    assert "more" not in capsys.readouterr().out
    (place / "features/a/x.npz").unlink()
    run("encode", place)
    assert f"{place / 'out'} holds 1 more, whose source is gone" in capsys.readouterr().out


def test_features_that_changed_are_encoded_again(place):
    run("encode", place)
    before = moments(place / "out")
    write_tree(place / "features", {"a/x": 33}, seed=9)
    run("encode", place)
    assert changed(place / "out", before) == ["a/x.npz", "a/x_times.npz"]
    assert len(np.load(place / "out/a/x.npz")["features"]) == 33


def test_times_that_changed_are_written_again(place):
    run("encode", place)
    before = moments(place / "out")
    late = frame_times(150) + np.float32(100)
    np.savez(place / "features/b/x_times.npz", times=late)
    run("encode", place)
    assert changed(place / "out", before) == ["b/x.npz", "b/x_times.npz"]
    np.testing.assert_array_equal(np.load(place / "out/b/x_times.npz")["times"], late)


def test_a_unit_that_fired_only_in_what_was_replaced_is_not_listed(place):
    model = random_model()
    with torch.no_grad():
        model.encoder[-1].conv.bias[0] = -1e4  # never fires
    saved(place / "model", model)
    run("encode", place)
    path = place / "out/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"fired": [0, *manifest["fired"]]}))
    write_tree(place / "features", {"a/x": 33}, seed=9)
    run("encode", place)
    assert 0 not in json.loads(path.read_text())["fired"]


def test_an_interrupt_leaves_no_incomplete_file_and_the_next_call_continues(place, monkeypatch):
    written = []

    def write(path, parts, *rest):
        def interrupted():
            for part in parts:
                yield part
                if len(written) == 2:
                    raise KeyboardInterrupt

        kept_write(path, interrupted(), *rest)
        written.append(path)

    kept_write = encodings.write_encoding
    with monkeypatch.context() as patch:
        patch.setattr(encodings, "write_encoding", write)
        with pytest.raises(KeyboardInterrupt):
            run("encode", place)
    assert not [name for name in out_files(place / "out") if name.endswith(".tmp")]
    before = moments(place / "out")
    assert all(str(path.relative_to(place / "out")) in before for path in written)
    assert run("encode", place) == 0
    assert len(list((place / "out").rglob("x.npz"))) == 2
    for path in written:
        assert str(path.relative_to(place / "out")) not in changed(place / "out", before)


def test_the_manifest_says_which_model_and_another_one_is_refused(place):
    run("encode", place)
    manifest = json.loads((place / "out/manifest.json").read_text())
    weights = (place / "model/best.pth").read_bytes()
    assert manifest["model"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert manifest["model"]["type"] == "CNN_Autoencoder_ne3_nd3_innersz24"
    assert manifest["form"] == "float32"
    assert manifest["versions"]["torch"] == torch.__version__
    before = moments(place / "out")
    with pytest.raises(UserError, match="out holds encodings .* as float32, and .* as sparse"):
        run("encode", place, "out", "--format=sparse")
    with pytest.raises(UserError, match="out holds encodings .*, and features by .*another --out"):
        run("decode", place, "out", source="features")
    saved(place / "model", random_model("batch", seed=1))
    with pytest.raises(
        UserError, match="out holds encodings by model .* give another --out, remove"
    ):
        run("encode", place)
    assert changed(place / "out", before) == []


def test_another_tree_is_refused_and_a_tree_that_moved_with_its_encodings_is_not(place, capsys):
    run("encode", place)
    write_tree(place / "other", {"a/x": 30, "c/y": 30})
    message = r"float32 from \.\./features, and those from \.\./other were"
    with pytest.raises(UserError, match=message):
        run("encode", place, source="other")
    assert not (place / "out/c").exists()
    manifest = place / "out/manifest.json"
    older = json.loads(manifest.read_text())
    del older["source"]  # an older program did not write it
    manifest.write_text(json.dumps(older))
    run("encode", place)
    with pytest.raises(UserError, match=message):
        run("encode", place, source="other")
    moved = place / "moved"
    for name in ("features", "out", "model"):
        shutil.copytree(place / name, moved / name)
    capsys.readouterr()
    run("encode", moved)
    assert "0 utterances written, 4 were there already" in capsys.readouterr().out


def test_a_folder_of_other_files_is_refused_and_left_unchanged(place):
    write_tree(place / "other", {"x": 20})
    before = moments(place / "other")
    with pytest.raises(UserError, match=r"other holds x.npz and no manifest.json"):
        run("encode", place, "other")
    with pytest.raises(UserError, match="is in .*features, which is read"):
        run("encode", place, "features/encoded")
    assert changed(place / "other", before) == []


def test_a_folder_that_another_process_writes_is_refused(place):
    from emaae.system.files import lock_folder

    (place / "out").mkdir()
    lock = lock_folder(place / "out")
    with pytest.raises(UserError, match="another process is writing .*out"):
        run("encode", place)
    lock.close()
    assert run("encode", place) == 0


def test_a_full_disk_prints_one_line_and_leaves_nothing(place, monkeypatch):
    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): check"):
        run("encode", place)
    assert not list((place / "out").rglob("*.tmp"))


# ---- what is broken


def test_a_broken_feature_file_is_an_error_or_is_left_out(place, capsys):
    (place / "features/a/x.npz").write_bytes(b"nothing")
    with pytest.raises(BadFile, match=r"a/x.npz is not an .npz.*--on_bad_file skip"):
        run("encode", place)
    assert run("encode", place, "out", "--on_bad_file=skip") == 0
    assert "left out: a/x (" in capsys.readouterr().out
    assert sorted(str(p.relative_to(place / "out")) for p in (place / "out").rglob("x.npz")) == [
        "b/x.npz"
    ]


def test_a_tree_with_broken_files_is_continued(place, capsys):
    run("encode", place)
    (place / "features/a/x.npz").write_bytes(b"nothing")
    for _ in range(2):
        capsys.readouterr()
        assert run("encode", place, "out", "--on_bad_file=skip") == 0
        told = capsys.readouterr().out
        assert "0 utterances written, 3 were there already" in told
        assert "left out: a/x (" in told
        # Nothing is left of what the file gave before it was broken.
        assert not list((place / "out").glob("a/*"))
        assert isinstance(json.loads((place / "out/manifest.json").read_text())["fired"], list)


def test_arrays_with_another_number_of_columns_are_refused():
    model = random_model()
    with pytest.raises(ValueError, match=r"expected features \(T, 13\), got \(40, 14\): a model"):
        encode(model, np.zeros((40, 14), np.float32))
    z = encode(model, raw(40))
    expected = re.escape(f"expected an encoding (T, {model.inner_size}), got {z.T.shape}")
    with pytest.raises(ValueError, match=expected):
        decode(model, z.T)


def test_frames_may_be_a_view_or_of_another_byte_order():
    model, frames = random_model(), raw(40)
    z = encode(model, frames)
    np.testing.assert_array_equal(encode(model, frames.astype(">f4")), z)
    np.testing.assert_array_equal(encode(model, frames[::-1]), encode(model, frames[::-1].copy()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda a: a | {"features": np.zeros((5, 7), np.float32)},
            "of shape .5, 7.: expected frames",
        ),
        (lambda a: {"features": np.full((5, C), np.nan)}, "numbers that are not finite"),
        (lambda a: {"features": np.full((5, C), 1e39)}, "numbers that are not finite"),
        (lambda a: {"features": np.zeros((0, C), np.float32)}, "shape .0, 24.: expected frames"),
        (lambda a: {"features": np.zeros((5, C), "<c8")}, "holds complex64"),
    ],
)
def test_encodings_that_the_model_did_not_make_are_refused(place, spoil, message):
    run("encode", place)
    path = place / "out/a/x.npz"
    with np.load(path) as found:
        arrays = dict(found)
    np.savez(path, **spoil(arrays))
    with pytest.raises(BadFile, match=message):
        run("decode", place, "back")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("indices", lambda a: a + C, "contradicts itself"),
        ("indices", lambda a: a - C, "contradicts itself"),
        ("indices", lambda a: a[:-1], "contradicts itself"),
        ("indptr", lambda a: a[::-1].copy(), "contradicts itself"),
        ("indptr", lambda a: np.r_[0, 10**9, a[2:]].astype(a.dtype), "contradicts itself"),
        ("shape", lambda a: np.array([10**9, C]), "contradicts itself"),
        ("shape", lambda a: np.array([len(a), 10**12]), "contradicts itself"),
        ("format", lambda a: np.array(b"coo"), "contradicts itself"),
        ("data", lambda a: a * np.float32(np.inf), "numbers that are not finite"),
    ],
)
def test_an_inconsistent_sparse_file_is_refused(place, key, value, message):
    run("encode", place, "out", "--format=sparse")
    path = place / "out/b/x.npz"
    with np.load(path) as found:
        arrays = dict(found)
    np.savez(path, **arrays | {key: value(arrays[key])})
    with pytest.raises(BadFile, match=message):
        run("decode", place, "back")


def test_a_sparse_file_of_too_many_frames_is_not_expanded(place, monkeypatch):
    run("encode", place, "out", "--format=sparse")
    monkeypatch.setattr(encodings, "MAX_FRAMES", LENGTHS["b/x"] - 1)
    with pytest.raises(BadFile, match=r"b/x.npz contradicts itself"):
        encodings.read_encoding(place / "out/b/x.npz", C)


@pytest.mark.parametrize("form", ["float32", "sparse"])
def test_a_flipped_bit_in_an_encoding_is_noticed(place, form):
    run("encode", place, "out", f"--format={form}")
    path = place / "out/b/x.npz"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        last = archive.infolist()[-1]
    content[last.header_offset + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"b/x.npz (is not a readable .npz|has numbers)"):
        run("decode", place, "back")


# ---- evaluate


def test_evaluate_gives_the_numbers_of_the_run_that_made_the_model(trees, tmp_path, capsys):
    flags = [*small_run(trees, tmp_path / "runs"), "--run_name=one", "--target_sparsity=0.7"]
    assert train.main([*flags, "--sparse_loss=l1_decoder_norm", "--weight_penalty"]) == 0
    command = ["evaluate", f"--model={tmp_path / 'runs/one'}", f"--features={trees['test']}"]
    capsys.readouterr()
    out = tmp_path / "new" / "metrics.json"
    assert main([*command, "--json", f"--out={out}", "--batch_sz=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(out.read_text())
    run_said = json.loads((tmp_path / "runs/one/metrics.json").read_text())
    expected = {n.removeprefix("test/"): v for n, v in run_said.items() if n.startswith("test/")}
    expected |= {n: v for n, v in run_said.items() if n.startswith(("shift/", "lowpass/"))}
    assert expected.keys() == told.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert told[name] == pytest.approx(value, rel=1e-4), name

    assert main([*command, "--target_sparsity=0.01", "--target_persistence=0"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == told.keys()
    assert float(lines["score"]) == pytest.approx(told["fvu"], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--features=nowhere"], "nowhere does not exist"),
        (["--batch_sz=0"], "--batch_sz must be at least 1, got 0"),
        (["--device=tpu"], "--device must be auto, cpu, cuda"),
        (["--model=nowhere"], "no model at nowhere"),
        (["--on_bad_file=ignore"], "invalid choice: 'ignore'"),
        (["--out=best.pth"], "--out must name a .json file, got best.pth"),
    ],
)
def test_a_usage_error_prints_one_line(place, more, message):
    given = [f"--model={place / 'model'}", f"--features={place / 'features'}", "--recursive"]
    with pytest.raises(UserError, match=message) as told:
        main(["evaluate", *given, *more])
    assert "\n" not in str(told.value)


def test_the_program_prints_one_line_and_exits_with_status_2(place):
    given = ("--model=nowhere", f"--features={place}", f"--out={place / 'o'}")
    done = forked("-m", "emaae", "encode", *given, "--recursive")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("python -m emaae: error: no model at nowhere")
    assert done.stderr.count("\n") == 1
