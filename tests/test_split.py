"""Splits and batches: channels, overlap, padding, and an order that depends on nothing else."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import speech, write_tree

from emaae.config import Config
from emaae.data.features import CHANNELS
from emaae.data.load import load_splits
from emaae.data.reading import FrameFormat
from emaae.data.split import Split, batches, check_splits, evaluation_order, training_order
from emaae.system.errors import UserError


def split_of(**lengths: int) -> Split:
    pairs = ((name, speech(n, seed=i + n)) for i, (name, n) in enumerate(lengths.items()))
    return Split.from_utterances(pairs)


def test_loudness_is_dropped_unless_it_is_kept():
    features = speech(10, seed=0)
    without = Split.from_utterances([("x", features)])
    kept = Split.from_utterances([("x", features)], FrameFormat(keep_loudness=True))
    assert without.channels == tuple(c for c in CHANNELS if c != "loudness")
    assert without.channels[12] == "pitch"
    assert kept.channels == CHANNELS
    assert np.array_equal(without[0][:, 12].numpy(), features[:, 13])
    assert np.array_equal(kept[0].numpy(), features)


def test_a_batch_holds_its_utterances_and_zeros():
    split = split_of(a=4, b=7, c=2)
    order = [np.array([2, 1]), np.array([0])]
    (x, mask), (last, _) = batches(split, order)
    assert torch.equal(last[0].T, split[0])
    assert x.shape == (2, 13, 7)
    assert torch.equal(x[0, :, :2].T, split[2])
    assert torch.equal(x[1].T, split[1])
    assert x[0, :, 2:].abs().sum() == 0
    assert mask.tolist() == [[[1, 1, 0, 0, 0, 0, 0]], [[1] * 7]]


def test_frames_that_do_not_fit_on_a_device_are_sent_batch_by_batch(monkeypatch):
    split, device = split_of(a=7, b=4, c=9), torch.device("meta")  # a device that every machine has
    assert split.to(device).frames.device == device
    monkeypatch.setattr("emaae.data.split.MAX_GPU_FRACTION", 0)
    sent = split.to(device)
    assert sent.frames is split.frames
    (x, mask), *_ = batches(sent, [np.array([0, 2, 1])])
    assert x.device == mask.device == sent[0].device == sent.subset([1])[0].device == device
    assert (x.shape, mask.shape) == ((3, 13, 9), (3, 1, 9))


def test_a_subset_is_on_the_device_of_its_frames():
    sent = replace(split_of(a=7, b=4, c=9), device=torch.device("cpu", 0))
    few = sent.subset(range(2))
    assert few.device == few.frames.device == torch.device("cpu") != sent.device
    assert few.lengths.tolist() == [7, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_batches_sent_to_a_gpu_equal_those_of_frames_on_the_gpu(monkeypatch):
    split, device = split_of(a=7, b=4, c=9), torch.device("cuda")
    order = [np.array([0, 2]), np.array([1])]
    there = list(batches(split.to(device), order))
    monkeypatch.setattr("emaae.data.split.MAX_GPU_FRACTION", 0)
    for given, expected in zip(batches(split.to(device), order), there):
        assert all(torch.equal(a, b) and a.device == b.device for a, b in zip(given, expected))


def test_every_utterance_is_used_once_per_epoch():
    lengths = np.random.default_rng(0).integers(10, 2000, 101)
    for order in (training_order(lengths, 8, 0, 3), evaluation_order(lengths, 8)):
        assert sorted(np.concatenate(order)) == list(range(101))
        assert max(len(batch) for batch in order) == 8


def test_the_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(10, 2000, 101)

    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_order(lengths, 8, seed, epoch)).tolist()

    np.random.seed(1)  # noqa: NPY002 - the global generators must not matter
    torch.manual_seed(1)
    first = flat(0, 5)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert flat(0, 5) == first
    assert flat(0, 6) != first
    assert flat(1, 5) != first


def test_batches_have_similar_lengths_and_little_padding():
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(630, 160, 4000), 70, 1700).astype(int)
    padded = sum(lengths[b].max() * len(b) for b in training_order(lengths, 32, 0, 0))
    assert padded / lengths.sum() < 1.04
    shuffled = random.permutation(lengths)
    at_random = sum(shuffled[i : i + 32].max() * 32 for i in range(0, 4000, 32))
    assert at_random / lengths.sum() > 1.3


def test_neighbours_change_from_epoch_to_epoch():
    lengths = np.random.default_rng(0).integers(600, 700, 320)
    first, second = (
        {frozenset(b.tolist()) for b in training_order(lengths, 32, 0, epoch)} for epoch in (0, 1)
    )
    assert not first & second


def test_a_batch_size_larger_than_the_data_gives_one_batch():
    split = split_of(a=4, b=7)
    assert len(list(batches(split, training_order(split.lengths, 32, 0, 0)))) == 1


def test_the_fingerprint_depends_on_names_and_contents():
    split = split_of(a=4, b=7)
    assert split.fingerprint() == split_of(a=4, b=7).fingerprint()
    renamed = Split(("a", "c"), split.frames, split.offsets, split.channels)
    changed = Split(split.names, split.frames + 1e-3, split.offsets, split.channels)
    other_cut = Split(split.names, split.frames, np.array([0, 5, 11]), split.channels)
    assert len({s.fingerprint() for s in (split, renamed, changed, other_cut)}) == 4


def test_an_utterance_in_two_splits_is_refused_by_its_name():
    with pytest.raises(UserError, match="utterance b of the val split is in the train split too"):
        check_splits({"train": split_of(a=4, b=7), "val": split_of(b=9)})


def test_an_utterance_in_two_splits_is_refused_by_its_content():
    features = speech(20, seed=1)
    train = Split.from_utterances([("here", features)])
    test = Split.from_utterances([("there", features)])
    with pytest.raises(UserError, match=r"there of the test split .* train split too \(as here\)"):
        check_splits({"train": train, "test": test})
    twice = Split.from_utterances([("here", features), ("again", features)])
    check_splits({"train": twice, "val": split_of(a=4)})


def test_a_speaker_in_two_splits_gives_a_warning_if_names_are_like_librispeechs():
    train = split_of(**{"103/1240/103-1240-0000": 4, "19/198/19-198-0001": 5})
    with pytest.warns(UserWarning, match=r"1 speaker\(s\) are in both train and val \(103\)"):
        check_splits({"train": train, "val": split_of(**{"103/9/103-9-0003": 6})})
    with pytest.warns(UserWarning, match="in both train and val"):
        check_splits(
            {"train": train, "odd": split_of(x=3), "val": split_of(**{"103/9/103-9-0003": 6})}
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_splits({"train": train, "val": split_of(**{"104/9/104-9-0003": 6})})
        check_splits({"train": split_of(m_001=4), "val": split_of(m_002=5)})


@pytest.mark.parametrize("value", [100.0, 0.1])
def test_a_channel_that_is_constant_in_training_alone_is_named(value):
    flat, moving = speech(301, seed=1), speech(20, seed=2)
    flat[:, 13] = value
    train = Split.from_utterances([("a", flat)])
    assert train.summary.sd[12] == 0
    message = rf"constant in train and not in val: pitch \({value:g}\); such a"
    with pytest.warns(UserWarning, match=message):
        check_splits({"train": train, "val": Split.from_utterances([("b", moving)])})
    moving[:, 13] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_splits({"train": train, "val": Split.from_utterances([("b", moving)])})


def test_a_tree_is_read_flat_or_recursively(tmp_path):
    for i, split in enumerate(("train", "val")):
        write_tree(tmp_path / split, {f"{i}/s/{i}-s-0": 8, f"{i}top": 9}, seed=i + 1)
    given = {"train_dir": str(tmp_path / "train"), "val_dir": str(tmp_path / "val")}
    flat = load_splits(Config.from_mapping(given))
    deep = load_splits(Config.from_mapping(given | {"recursive": True}))
    assert flat["train"].names == ("0top",)
    assert deep["train"].names == ("0/s/0-s-0", "0top")
    assert list(deep) == ["train", "val"]


def test_without_directories_the_demo_data_is_generated_the_same_every_time():
    config = Config.from_mapping({"eval_only": True, "checkpoint": "none.pth"})
    first, again = load_splits(config), load_splits(config)
    assert list(first) == ["test"]
    assert first["test"].fingerprint() == again["test"].fingerprint()
