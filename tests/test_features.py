"""Reading feature trees: which files are utterances, and what happens to other files."""

import os
import pickle
import time
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hostile
import numpy as np
import pytest
from conftest import small_run, speech, write_tree
from forked import forked

from emaae.config import Config
from emaae.corpus import extract
from emaae.data import bucket
from emaae.data.features import check_identity, find_features, read_features, read_times
from emaae.data.load import load_splits
from emaae.system.errors import BadFile, UserError


@pytest.fixture
def features() -> np.ndarray:
    return speech(30, seed=5)


def write(path, features) -> None:
    with open(path, "wb") as file:
        np.savez(file, features=features)


def names(root, recursive) -> list[str]:
    return [file.identity for file in find_features(root, recursive)]


def test_the_identity_is_the_whole_relative_path(tmp_path):
    write_tree(tmp_path, dict.fromkeys(["a/x", "b/x", "mngu0_s1_0001", "mngu0_s1_0002", "v1.5"], 3))
    assert names(tmp_path, True) == ["a/x", "b/x", "mngu0_s1_0001", "mngu0_s1_0002", "v1.5"]
    assert names(tmp_path, False) == ["mngu0_s1_0001", "mngu0_s1_0002", "v1.5"]


def test_links_are_followed_and_loops_end(tmp_path):
    write_tree(tmp_path / "corpus", {"103/x": 3})
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "103").symlink_to(tmp_path / "corpus" / "103")
    (tmp_path / "corpus" / "103" / "up").symlink_to(tmp_path / "tree")
    assert names(tmp_path / "tree", True) == ["103/x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every directory")
def test_a_directory_that_cannot_be_listed_is_reported(tmp_path):
    write_tree(tmp_path, {"x": 3, "sub/y": 3})
    (tmp_path / "sub").chmod(0)
    try:
        with pytest.raises(UserError, match="sub cannot be listed"):
            find_features(tmp_path, True)
    finally:
        (tmp_path / "sub").chmod(0o700)


def test_other_files_beside_the_features_are_ignored(tmp_path):
    write_tree(tmp_path, {"x": 3})
    (tmp_path / "x_config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._x.npz").write_bytes(b"left behind by a file manager")
    assert names(tmp_path, True) == ["x"]


# Each name is left out of every listing, or is data in each.
NAMES = {
    "a": True,
    "._a": False,
    ".hidden/a": False,
    "b/.Trash-1000/files/a": False,
    "__MACOSX/a": False,
    "$RECYCLE.BIN/a": False,
    "lost+found/a": False,
    "c/@eaDir/a": False,
    "d/e.f/a": True,
    "ä/ö": True,
}


def test_every_listing_has_the_same_rule_for_what_is_data(tmp_path, features):
    for name in NAMES:
        for suffix in (".npz", ".WAV"):
            path = tmp_path / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, features)
    data = sorted(name for name, is_data in NAMES.items() if is_data)
    assert [file.identity for file in find_features(tmp_path, recursive=True)] == data
    assert list(extract._find_audio(tmp_path, extract.Extracted())) == data

    class Bucket:
        name = "b"
        objects = SimpleNamespace(
            filter=lambda **query: [
                SimpleNamespace(key=f"x/{name}", size=1, e_tag="") for name in NAMES
            ]
        )

    pytest.importorskip("boto3")
    assert [file.identity for file in bucket.list_features(Bucket, "x", True)[0]] == data


def test_the_suffix_may_be_in_capitals(tmp_path, features):
    write(tmp_path / "A.NPZ", features)
    np.savez(open(tmp_path / "A_times.NPZ", "wb"), times=np.zeros((len(features), 2)))  # noqa: SIM115
    (file,) = find_features(tmp_path, recursive=False)
    assert file.identity == "A"
    assert np.array_equal(read_features(file.path), features)
    assert read_times(file.path).shape == (len(features), 2)
    write(tmp_path / "A.npz", features)
    with pytest.raises(UserError, match="would be the same utterance, A: rename or remove one"):
        find_features(tmp_path, recursive=False)


def test_a_broken_link_is_an_error_of_that_file(tmp_path, features):
    write(tmp_path / "a.npz", features)
    (tmp_path / "b.npz").symlink_to(tmp_path / "gone.npz")
    config = Config(train_dir=str(tmp_path), cache_dir="none")
    with pytest.raises(BadFile, match=r"b.npz cannot be read: No such file"):
        load_splits(config)
    with pytest.warns(UserWarning, match="left out 1 of 2 files, which are broken: b"):
        (train,) = load_splits(replace(config, on_bad_file="skip")).values()
    assert len(train) == 1


@pytest.mark.parametrize("name", [b"\xff\xfe.npz", b"x" * 251 + b".npz", "\u202e.npz".encode()])
def test_names_of_any_length_or_encoding_print_one_line(tmp_path, features, name):
    trees = {"train": write_tree(tmp_path / "t", {"a": 30, "b": 30}), "val": tmp_path / "v"}
    write_tree(tmp_path / "v", {"c": 30})
    os.rename(tmp_path / "v" / "c.npz", os.fsencode(tmp_path / "v") + b"/" + name)
    done = forked("train.py", *small_run(trees, tmp_path / "runs"))
    checked = forked("-m", "emaae", "check", str(tmp_path / "v"))
    assert "Traceback" not in done.stderr + checked.stderr
    assert done.returncode in (0, 2), done.stderr
    if len(name) < 200:
        assert "must have no control characters" in done.stderr
        assert checked.returncode == 2


def test_a_single_matrix_saved_without_a_key_is_read(tmp_path, features):
    np.savez(tmp_path / "x.npz", features, np.arange(3), notes=np.array({"by": "SPARC"}))
    assert np.array_equal(read_features(tmp_path / "x.npz"), features)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4"])
def test_any_real_numbers_become_float32(tmp_path, features, dtype):
    np.savez_compressed(tmp_path / "x.npz", features=features.astype(dtype))
    read = read_features(tmp_path / "x.npz")
    assert read.dtype == np.float32
    assert np.allclose(read, features.astype(dtype).astype(np.float32))


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        read_features(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def changed(frame: int, column: int, value: float) -> np.ndarray:
    features = speech(30, seed=5).astype(np.float64)
    features[frame, column] = value
    return features


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.zeros((30, 13))}, "has shape (30, 13)"),
        ({"features": np.zeros((30, 15))}, "has shape (30, 15)"),
        ({"features": np.zeros(14)}, "has shape (14,)"),
        ({"features": np.zeros((2, 30, 14))}, "has shape (2, 30, 14)"),
        ({"features": np.zeros((0, 14))}, "has no frames"),
        ({"features": np.zeros((5, 14), complex)}, "has dtype complex128"),
        ({"features": np.zeros((5, 14), "U3")}, "has dtype <U3"),
        ({"features": np.zeros((5, 14), bool)}, "has dtype bool"),
        ({"features": changed(7, 3, np.nan)}, "has nan at frame 7, column TBY"),
        ({"features": changed(7, 3, np.inf)}, "has inf at frame 7, column TBY"),
        ({"features": changed(7, 3, -np.inf)}, "has -inf at frame 7, column TBY"),
        ({"features": changed(2, 13, 1e300)}, "at frame 2, column pitch"),  # no float32
        (dict.fromkeys("ab", np.zeros((5, 14))), "no key `features` and 2 2-D arrays among its"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_arrays_that_are_not_features_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    assert message in refused(tmp_path / "x.npz")


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["array", "bare"])
def test_pickles_are_never_loaded(tmp_path, form):
    trace = tmp_path / "trace"
    if form == "array":
        objects = np.empty((2, 14), object)
        objects[:] = Bomb(trace)
        np.savez(tmp_path / "x.npz", features=objects)
    else:
        (tmp_path / "x.npz").write_bytes(pickle.dumps(Bomb(trace)))
    assert "pickled objects, which are never loaded" in refused(tmp_path / "x.npz")
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 1, 3, 50, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path, features, keep):
    np.savez_compressed(tmp_path / "x.npz", features=features)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    refused(tmp_path / "x.npz")


def test_flipped_bits_are_refused_or_harmless(tmp_path, features):
    np.savez_compressed(tmp_path / "x.npz", features=features)
    whole = (tmp_path / "x.npz").read_bytes()
    random = np.random.default_rng(0)
    n_refused = 0
    for _ in range(60):
        broken = bytearray(whole)
        broken[random.integers(len(whole))] ^= 1 << random.integers(8)
        (tmp_path / "x.npz").write_bytes(broken)
        try:
            assert np.array_equal(read_features(tmp_path / "x.npz"), features)
        except UserError:
            n_refused += 1
    assert n_refused > 40


README = hostile.archive("readme.txt", b"hello", 5, zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com", "is not an .npz (it begins b'versio')"),
        (b"PK\x03\x04" + b"\0" * 100, "is not a readable .npz"),
        (README, "no key `features` and 0 2-D arrays"),
        (hostile.npy((5, 14), content=bytes(280)), "is a bare array"),
    ],
    ids=["nothing", "text", "zeros", "archive of text", "bare array"],
)
def test_a_file_that_is_not_an_archive_of_arrays_is_refused(tmp_path, content, message):
    (tmp_path / "x.npz").write_bytes(content)
    assert message in refused(tmp_path / "x.npz")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path)])
def test_a_folder_and_a_link_to_itself_are_refused(tmp_path, make):
    make(tmp_path / "x.npz")
    assert "cannot be read" in refused(tmp_path / "x.npz")


def only_times(root):
    write_tree(root, {"x": 3, "sub/y": 3})
    (root / "x.npz").unlink()
    (root / "sub" / "y.npz").unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist .*: expected a directory"),
        (lambda root: root.write_text(""), "is not a directory"),
        (lambda root: root.mkdir(), "holds no .npz feature files: expected NAME.npz"),
        (only_times, "holds no .npz feature files: expected NAME.npz"),
        (lambda root: write_tree(root / "sub", {"x": 3}), "sub-directories: add --recursive"),
    ],
)
def test_a_directory_without_features_says_why(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(UserError, match=message):
        find_features(tmp_path / "root", recursive=False)


# ---- made to do harm

BOMBS = hostile.bombs()


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_that_would_inflate_to_2_gb_is_refused_first(tmp_path, bomb):
    (tmp_path / "x.npz").write_bytes(BOMBS[bomb])
    tracemalloc.start()
    began = time.process_time()
    message = refused(tmp_path / "x.npz")
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.05
    assert peak < 50e6
    if bomb == "says so":
        assert "is too large for one utterance: its array 'features.npy' has 2.1 GB" in message


def test_only_the_array_that_is_asked_for_is_inflated(tmp_path, features):
    np.savez_compressed(tmp_path / "x.npz", features, other=np.zeros((5, 10**6), np.float32)[None])
    tracemalloc.start()
    assert np.array_equal(read_features(tmp_path / "x.npz"), features)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"shape": (10**400, 14)}, "is not a readable .npz"),
        ({"shape": (10**12, 14)}, r"array of size 420 into shape \(1000000000000,14\)"),
        ({"shape": (31, 14)}, r"array of size 420 into shape \(31,14\)"),
        ({"shape": (29, 14)}, r"array of size 420 into shape \(29,14\)"),
        ({"shape": (-30, -14)}, "is not a readable .npz"),
        ({"shape": (30, 14), "dtype": "|O"}, "pickled objects"),
        ({"shape": (30, 14), "dtype": "<f3"}, "is not a readable .npz"),
        ({"shape": (30, 14), "dtype": [("a", "<f4")]}, "has dtype"),
        ({"shape": "(" * 3000}, "is not a readable .npz"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_a_wrong_header_is_refused(tmp_path, features, header, message):
    content = hostile.npy(**header, content=features.tobytes())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("features.npy", content)
    with pytest.raises(BadFile, match=message):
        read_features(tmp_path / "x.npz")


def test_two_members_of_one_name_are_refused(tmp_path, features):
    content = hostile.npy((30, 14), content=features.tobytes())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("features.npy", content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("features.npy", content)
    assert "two members of one name" in refused(tmp_path / "x.npz")


def test_a_pipe_and_a_device_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name, path, _ in find_features(tmp_path, False):
        assert "is a pipe or a device" in refused(path), name


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "/etc/x", "a//x", "./x", "a\nb", "a\x1b[2J", ""]
)
def test_names_that_leave_the_folder_or_control_a_terminal_are_refused(name):
    with pytest.raises(BadFile, match="the name .* must have no control characters"):
        check_identity(name, "s3://speech")


@pytest.mark.parametrize("name", ["a..b", "...a", "x y", "\u00e4/\u97f3", "103/1240/103-1240-0000"])
def test_other_names_are_fine(name):
    check_identity(name, "s3://speech")


@pytest.fixture
def damaged(tmp_path):
    """Ten utterances; two files are broken, and one has a line break in its name."""
    write_tree(tmp_path / "t", {f"u{i}": 20 for i in range(10)})
    (tmp_path / "t" / "u3.npz").write_bytes(b"PK")
    np.savez(tmp_path / "t" / "u7.npz", features=np.full((20, 14), np.nan))
    (tmp_path / "t" / "u9.npz").rename(tmp_path / "t" / "u\n9.npz")
    write_tree(tmp_path / "v", {"v": 20}, seed=1)
    return {"train_dir": str(tmp_path / "t"), "val_dir": str(tmp_path / "v")}


def test_a_broken_file_ends_the_run_with_a_message_that_says_what_to_do(damaged):
    with pytest.raises(UserError, match=r"--on_bad_file skip"):
        load_splits(Config.from_mapping(damaged))


def test_broken_files_are_left_out_on_request_and_named_once(damaged):
    config = Config.from_mapping(damaged | {"on_bad_file": "skip"})
    with pytest.warns(UserWarning, match="(?s)train: left out 3 of 10 .* u3, u7") as told:
        splits = load_splits(config)
    assert len(told) == 1
    assert splits["train"].names == tuple(f"u{i}" for i in (0, 1, 2, 4, 5, 6, 8))
    assert set(splits["train"].skipped) == {"u3", "u7", "u\n9"}
    assert splits["val"].skipped == {}


def test_a_directory_of_broken_files_alone_is_refused(tmp_path, damaged):
    (tmp_path / "v" / "v.npz").write_bytes(b"PK")
    config = Config.from_mapping(damaged | {"on_bad_file": "skip"})
    with pytest.raises(UserError, match="all 1 files are broken: .*v.npz is"):
        load_splits(config)
