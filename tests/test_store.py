"""The packed store: the same splits as without it, built once, and checked at each use."""

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, program, small_run, speech, write_tree

from emaae.config import Config
from emaae.data import reading, store
from emaae.data.features import find_features, read_bytes, read_features
from emaae.data.load import load_splits
from emaae.data.reading import FrameFormat
from emaae.data.split import Split
from emaae.system.errors import UserError


@pytest.fixture
def tree(tmp_path) -> Path:
    """Five utterances in two folders."""
    return write_tree(tmp_path / "tree", {"a/x": 30, "a/y": 5, "b/x": 17, "c": 60, "d": 1}, seed=4)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A cache folder of its own for one test."""
    return tmp_path / "cache"


def split_of(tree: Path, cache: Path | str, **knobs) -> Split:
    given = {"train_dir": str(tree), "val_dir": str(tree), "recursive": True}
    config = Config.from_mapping(given | {"cache_dir": str(cache)} | knobs)
    return load_splits(config, wanted=("train",))["train"]


def the_store(cache: Path) -> Path:
    (index,) = cache.glob("*/*/index.json")
    return index.parent


def stores(cache: Path) -> list[Path]:
    """All stores, whole or not."""
    return [path for path in cache.glob("*/*") if path.is_dir()]


def same(one: Split, other: Split) -> bool:
    return (
        one.names == other.names
        and torch.equal(one.frames, other.frames)
        and one.frames.dtype == other.frames.dtype
        and np.array_equal(one.offsets, other.offsets)
        and one.channels == other.channels
        and one.fingerprint() == other.fingerprint()
        and all(map(torch.equal, one.mean_and_sd(), other.mean_and_sd()))
    )


# ---- the same data


@pytest.mark.parametrize("knobs", [{}, {"keep_loudness": True}, {"data_dtype": "float16"}])
def test_a_store_gives_the_same_splits_as_the_files_and_reads_them_once(
    tree, folder, knobs, monkeypatch
):
    read = split_of(tree, "none", **knobs)
    assert same(split_of(tree, folder, **knobs), read)
    monkeypatch.setattr("emaae.data.load.read_bytes", None)
    assert same(split_of(tree, folder, **knobs), read)


def test_digests_and_moments_are_those_of_the_frames(tree, folder):
    kept = split_of(tree, folder)
    anew = Split(kept.names, kept.frames, kept.offsets, kept.channels)
    assert kept.precomputed is not None
    assert same(kept, anew)
    frames = kept.frames.double()
    assert torch.equal(kept.mean_and_sd()[0], frames.mean(0).float())
    assert torch.equal(kept.mean_and_sd()[1], frames.std(0, correction=0).float())


def test_moments_of_more_frames_than_are_summed_at_a_time():
    frames = np.random.default_rng(0).normal(100, 2, (150_000, 14)).astype(np.float32)
    mean, sd = Split.from_utterances([("x", frames)], FrameFormat(True)).mean_and_sd()
    assert np.allclose(mean, frames.astype(float).mean(0), rtol=1e-7)
    assert np.allclose(sd, frames.astype(float).std(0), rtol=1e-7)


def test_a_subset_of_a_split_has_its_own_digests_and_moments(tree, folder):
    split = split_of(tree, folder)
    pick = split.subset([3, 0])
    whole = split.summary.digests
    assert pick.summary.digests == (whole[3], whole[0])
    assert torch.allclose(pick.mean_and_sd()[0], pick.frames.mean(0), atol=1e-3)


def test_the_demo_data_are_generated_once_and_keep_their_order(folder, monkeypatch):
    config = Config.from_mapping({"cache_dir": str(folder)})
    generated = load_splits(Config.from_mapping({"cache_dir": "none"}), wanted=("val",))["val"]
    assert same(load_splits(config, wanted=("val",))["val"], generated)
    monkeypatch.setitem(sys.modules, "emaae.data.demo", None)  # importing it is an error now
    assert same(load_splits(config, wanted=("val",))["val"], generated)


def test_float16_takes_half_and_gives_float32_to_the_model(tree, folder):
    split = split_of(tree, folder, data_dtype="float16")
    assert (the_store(folder) / "frames").stat().st_size == 2 * split.frames.numel()
    assert split[0].dtype == torch.float32
    exact = split_of(tree, "none")
    assert torch.allclose(split[0], exact[0], rtol=2**-10, atol=1e-6)
    assert split.fingerprint() != exact.fingerprint()


def test_numbers_beyond_float16_are_refused(tree, folder):
    features = speech(10, seed=1)
    features[3, 0] = 70_000
    np.savez(tree / "c.npz", features=features)
    with pytest.raises(UserError, match="c has values up to 70000.*use --data_dtype float32"):
        split_of(tree, folder, data_dtype="float16")


# ---- made once


def test_frames_are_mapped_and_writing_to_them_does_not_change_the_store(tree, folder):
    one, other = split_of(tree, folder), split_of(tree, folder)
    before = other.frames[0, 0].item()
    one.frames[0, 0] += 1
    assert other.frames[0, 0].item() == before
    assert split_of(tree, folder).frames[0, 0].item() == before
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(the_store(folder) / "frames") in maps.read_text()


def other_content(tree: Path) -> None:
    np.savez(tree / "c.npz", features=speech(60, seed=77))


def touched(tree: Path) -> None:
    os.utime(tree / "c.npz", ns=(0, 0))


def one_more(tree: Path) -> None:
    write_tree(tree, {"e": 9}, seed=9)


def one_less(tree: Path) -> None:
    (tree / "c.npz").unlink()


def renamed(tree: Path) -> None:
    (tree / "c.npz").rename(tree / "cc.npz")


@pytest.mark.parametrize("change", [other_content, touched, one_more, one_less, renamed])
def test_a_store_is_replaced_when_its_files_change(tree, folder, change, capsys):
    split_of(tree, folder)
    before = the_store(folder)
    change(tree)
    assert same(split_of(tree, folder), split_of(tree, "none"))
    assert the_store(folder) != before
    assert "replacing an older copy" in capsys.readouterr().out.splitlines()[-1]


def test_other_columns_and_other_trees_have_stores_of_their_own(tree, folder, tmp_path):
    split_of(tree, folder)
    split_of(tree, folder, keep_loudness=True)
    split_of(tree, folder, data_dtype="float16")
    split_of(tree, folder, recursive=False)
    split_of(shutil.copytree(tree, tmp_path / "copy"), folder)
    assert len(list(folder.glob("*/*/index.json"))) == 5


def test_another_format_is_another_store(tree, folder, monkeypatch):
    split_of(tree, folder)
    before = the_store(folder)
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    split_of(tree, folder)
    assert the_store(folder) != before


def test_a_store_that_is_mapped_is_not_removed(tree, folder):
    mapped = split_of(tree, folder)
    touched(tree)
    split_of(tree, folder)
    assert len(list(folder.glob("*/*/frames"))) == 2
    del mapped
    one_more(tree)
    split_of(tree, folder)
    assert len(list(folder.glob("*/*/frames"))) == 1


def slow_to_read(path, stamp):
    """As `read_bytes`; the first files take longest."""
    time.sleep(0.02 / (1 + int(Path(path).stem)))
    return read_bytes(path, stamp)


@pytest.mark.filterwarnings("ignore:train. left out")
def test_many_files_are_read_at_a_time_and_come_in_their_order(tmp_path, folder, monkeypatch):
    many = write_tree(tmp_path / "many", {f"{i:03d}": 1 + i % 7 for i in range(70)})
    monkeypatch.setattr("emaae.data.load.read_bytes", slow_to_read)
    expected = np.concatenate([read_features(path) for _, path, _ in find_features(many, False)])
    for cache in ("none", folder):
        split = split_of(many, cache, keep_loudness=True)
        assert split.names == tuple(f"{i:03d}" for i in range(70))
        assert np.array_equal(split.frames, expected)
    for name in ("033", "066"):
        (many / f"{name}.npz").write_bytes(b"broken")
    with pytest.raises(UserError, match="033.npz is not an .npz"):
        split_of(many, folder)
    for cache in ("none", folder):
        split = split_of(many, cache, on_bad_file="skip")
        assert list(split.skipped) == ["033", "066"]
        assert len(split) == 68


def test_files_are_read_little_earlier_than_they_are_asked_for(tmp_path, monkeypatch):
    many = find_features(write_tree(tmp_path, {f"{i:03d}": 1 for i in range(40)}), False)
    monkeypatch.setattr(reading, "FILES_AT_ONCE", 2)
    monkeypatch.setattr(reading, "THREADS", 3)
    begun, n_threads = [], threading.active_count()
    found = reading.read_files(many, begun.append, lambda file, content: file)
    assert [next(found) for _ in range(10)] == many[:10]
    assert len(begun) <= 10 + 2 * 3
    found.close()
    assert len(begun) <= 10 + 2 * 3
    assert threading.active_count() == n_threads


def test_long_recordings_are_fetched_few_at_a_time(tmp_path, monkeypatch):
    many = find_features(write_tree(tmp_path, {f"{i:03d}": 1 for i in range(40)}), False)
    monkeypatch.setattr(reading, "MANY_BYTES", many[0].stamp[0] - 1)
    begun = []
    found = reading.read_files(many, begun.append, lambda file, content: file)
    assert next(found) == many[0]
    found.close()
    assert len(begun) <= 1 + reading.THREADS


def test_broken_files_that_are_left_out_are_left_out_of_the_store_and_named(
    tree, folder, monkeypatch
):
    (tree / "b" / "x.npz").write_bytes(b"broken")
    left_out = "left out 1 of 5 files, which are broken: b/x"
    with pytest.warns(UserWarning, match=left_out):
        read = split_of(tree, "none", on_bad_file="skip")
    assert list(read.skipped) == ["b/x"]
    with pytest.warns(UserWarning, match=left_out):
        packed = split_of(tree, folder, on_bad_file="skip")
    with monkeypatch.context() as patch:
        patch.setattr("emaae.data.load.read_bytes", lambda *args: pytest.fail("a file is read"))
        with pytest.warns(UserWarning, match=left_out):
            mapped = split_of(tree, folder, on_bad_file="skip")
    assert same(packed, read)
    assert same(mapped, read)
    assert mapped.skipped == read.skipped
    with pytest.raises(UserError, match="b/x.npz is not an .npz"):
        split_of(tree, folder, on_bad_file="stop")  # what was packed without it does not count


# ---- errors, crashes, full disks


def test_a_bad_file_is_named_and_nothing_half_written_stays(tree, folder):
    np.savez(tree / "b" / "x.npz", features=np.full((3, 14), np.nan))
    with pytest.raises(UserError, match=r"b/x.npz has nan at frame 0, column TDX"):
        split_of(tree, folder)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [".lock"]


def test_a_file_that_changes_while_it_is_read_is_refused(tree, folder, monkeypatch):
    def find_and_change(root, recursive):
        found = find_features(root, recursive)
        other_content(tree)
        return found

    monkeypatch.setattr("emaae.data.load.find_features", find_and_change)
    with pytest.raises(UserError, match="c.npz has changed since it was listed"):
        split_of(tree, folder)


def test_what_a_killed_builder_left_is_removed(tree, folder):
    split_of(tree, folder)
    shelf = the_store(folder).parent
    (shelf / "building-dead").mkdir()
    (shelf / "building-dead" / "frames").write_bytes(b"half")
    touched(tree)
    split_of(tree, folder)
    assert not (shelf / "building-dead").exists()


def test_a_killed_builder_leaves_no_lock(tree, folder):
    script = f"""
import os, time
from emaae.data import load
def slowly(path, stamp):
    os.write(1, b"reading\\n")
    time.sleep(60)
load.read_bytes = slowly
from emaae.config import Config
given = {{"train_dir": {str(tree)!r}, "val_dir": {str(tree)!r}, "cache_dir": {str(folder)!r}}}
config = Config.from_mapping(given | {{"recursive": True}})
load.load_splits(config, wanted=("train",))
"""
    builder = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert builder.stdout.readline() == "reading\n"
    builder.kill()
    builder.wait()
    assert len(split_of(tree, folder)) == 5
    assert not list(folder.glob("*/building-*"))


def test_a_program_ends_although_more_files_are_being_read(tmp_path):
    many = write_tree(tmp_path / "many", {f"{i:03d}": 1000 for i in range(100)})
    script = f"""
import gc
from emaae.data import load, reading
gc.disable()
listing = load.list_source({str(many)!r}, False)
read = lambda file, fetched: load.features_in(fetched)
frames = reading.read_files(listing.files, listing.fetch, read)
print(len(next(frames)))
itself = [frames]
itself.append(itself)  # as an error whose traceback is in a cycle, which keeps the generator open
del frames, itself
"""
    assert program("-c", script).stdout == "1000\n"


def test_other_processes_wait_for_the_builder_and_say_so(tree, folder, monkeypatch, capsys):
    began, go_on = threading.Event(), threading.Event()
    calls = []

    def slowly(path, stamp):
        calls.append(path)
        began.set()
        go_on.wait(20)
        return read_bytes(path, stamp)

    monkeypatch.setattr("emaae.data.load.read_bytes", slowly)
    found = []
    builders = [threading.Thread(target=lambda: found.append(split_of(tree, folder)))]
    builders[0].start()
    began.wait(20)
    builders.append(threading.Thread(target=lambda: found.append(split_of(tree, folder))))
    builders[1].start()
    deadline, said = time.monotonic() + 20, ""
    while "waiting for another process that packs" not in said and time.monotonic() < deadline:
        said += capsys.readouterr().out
        time.sleep(0.01)
    go_on.set()
    for builder in builders:
        builder.join(20)
    assert "waiting for another process that packs" in said
    assert len(calls) == 5
    assert same(*found)


def test_a_cache_that_cannot_be_written_gives_one_warning(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot hold .*Not a directory.* with --cache_dir"):
        split = split_of(tree, tmp_path / "file" / "cache")
    assert same(split, split_of(tree, "none"))


def test_a_full_disk_gives_one_warning_and_leaves_nothing(tree, folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.warns(UserWarning, match="is read into memory instead"):
            split = split_of(tree, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert same(split, split_of(tree, "none"))
    assert not stores(folder)


def test_a_closed_terminal_is_not_reported_as_an_error_of_the_cache(tree, folder, monkeypatch):
    def gone(*args, **options):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(BrokenPipeError):
        split_of(tree, folder)


# ---- nothing is believed


def test_the_cache_belongs_to_its_user(tree, folder):
    split_of(tree, folder)
    for path in (folder, the_store(folder).parent, the_store(folder)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


CHANGES = {
    "no index": ("index.json", None),
    "an empty index": ("index.json", lambda content: b""),
    "no digest": ("index.json", lambda content: content.partition(b"\n")[2]),
    "another digest": ("index.json", lambda content: content[1:] + content[:1]),
    "one name": ("index.json", lambda content: content.replace(b'"names": ["', b'"names": ["x')),
    "half an index": ("index.json", lambda content: content[:-10]),
    "no frames": ("frames", None),
    "half the frames": ("frames", lambda content: content[:100]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_incomplete_store_is_built_again(tree, folder, case, capsys):
    name, change = CHANGES[case]
    split_of(tree, folder)
    path = the_store(folder) / name
    before = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(before))
        assert path.read_bytes() != before
    assert same(split_of(tree, folder), split_of(tree, "none"))
    assert "replacing an older copy" in capsys.readouterr().out.splitlines()[-1]
    assert len(stores(folder)) == 1


# ---- the folder


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Config().cache_folder == tmp_path / "emaae"
    monkeypatch.setenv("HOME", "/home/someone")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert Config().cache_folder == Path("/home/someone/.cache/emaae")
    assert Config(cache_dir="/disk/x").cache_folder == Path("/disk/x")
    assert Config(cache_dir="none").cache_folder is None


# ---- the start of a run


HEAVY = ("wandb", "matplotlib", "scipy", "optuna", "plotly", "emaae.data.demo")


def test_modules_that_training_does_not_need_are_not_imported_before_it(trees, tmp_path):
    script = f"""
import sys
import train
from emaae import training
def first_batch(*args):
    print("imported:", [name for name in {HEAVY!r} if name in sys.modules])
    raise SystemExit
training.train_epoch = first_batch
train.main(sys.argv[1:])
"""
    done = program("-c", script, *small_run(trees, tmp_path / "runs"))
    assert "imported: []" in done.stdout, done.stderr


def test_wandb_is_not_imported_by_a_whole_run_that_disables_it(trees, tmp_path):
    script = """
import sys
import train
assert train.main(sys.argv[1:]) == 0
print("wandb" in sys.modules)
"""
    done = program("-c", script, *small_run(trees, tmp_path / "runs"), "--epochs=1")
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_torch_is_imported_neither_to_check_a_sweep_file_nor_to_run_a_sweep():
    script = "import sys, emaae.__main__, emaae.sweeps.runner; print('torch' in sys.modules)"
    done = program("-c", script)
    assert done.stdout == "False\n", done.stderr
