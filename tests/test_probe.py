"""The linear probe: labels, fit, shifts of the input, references, program."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from forked import forked

from analysis import kernels, probe
from analysis import labels as labels_of
from analysis.costs import Codec
from emaae.data.demo import generate, read_score, write_tree
from emaae.data.phones import Gesture, Phone
from emaae.filters import apply_filters, windowed_sinc
from emaae.models import build_model
from emaae.shift import SHIFT_TAPS
from emaae.system.errors import reporting_errors

PHONES = [Phone("SIL", 0.0, 0.1), Phone("B", 0.1, 0.2), Phone("IY", 0.2, 0.3)]
LIPS = ("ULX", "LLX")


def gesture(channels, phone, start_s, end_s, weight=1.0):
    return [Gesture(channel, phone, 0.0, weight, start_s, end_s) for channel in channels]


def of(labels):
    """An utterance with noise as features, and with the given phones and gestures."""
    features = np.random.default_rng(len(labels)).normal(size=(len(labels), 14))
    labels = np.array([*labels])
    return labels_of.Labelled(features.astype(np.float32), {"phone": labels, "gesture": labels})


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Generated speech as a tree, some seconds of each split."""
    root = tmp_path_factory.mktemp("speech")
    write_tree(root, n_utterances=2, scale=0.1)
    return root


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return build_model(inner_size=16, n_encoder=3, n_decoder=2).eval()


@pytest.fixture
def saved(model, tmp_path):
    """The folder of a model as a run leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "best.pth")
    (folder / "model_config.json").write_text(json.dumps(model.architecture()))
    return folder


# ---- labels


def test_a_frame_has_the_phone_that_sounds_at_its_centre():
    centres_s = np.array([0.0, 0.0999, 0.1, 0.25, 0.9])
    times = centres_s[:, None] + [-0.01, 0.01]
    found = labels_of.labelled(np.zeros((5, 14)), times, PHONES, [])
    assert found.labels["phone"].tolist() == ["SIL", "SIL", "B", "IY", "IY"]


def test_consonants_replace_vowels_and_later_phones_earlier_ones():
    gestures = [
        *gesture(LIPS, "W", 0.0, 0.3),
        *gesture(("LIY",), "W", 0.0, 0.3, weight=0.15),  # it only follows
        *gesture(labels_of.ARTICULATORS, "IY", 0.1, 0.5),
        *gesture(("TTY",), "T", 0.2, 0.4),
        *gesture(("TTY",), "S", 0.6, 0.7),
    ]
    centres_s = np.array([-0.1, 0.0, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65])
    everything = " ".join(labels_of.ARTICULATORS)
    expected = ["rest", "ULX LLX", "ULX LLX", "TTY", "TTY", everything, "rest", "TTY"]
    assert labels_of.gesture_labels(gestures, centres_s).tolist() == expected


def test_generated_frames_have_the_labels_of_their_score():
    (utterance,) = generate("test", n_utterances=1)
    found = labels_of.labelled(
        utterance.features, utterance.times, utterance.phones, utterance.gestures
    )
    for i, (start_s, end_s) in enumerate(utterance.times):
        (phone,) = (p for p in utterance.phones if p.start_s <= (start_s + end_s) / 2 < p.end_s)
        assert found.labels["phone"][i] == phone.label
    vowels = np.char.count(found.labels["gesture"], " ") == 11
    assert set(found.labels["phone"][vowels]) & {"IY", "AA", "UW", "AE", "AO"}


def test_a_tree_gives_the_labels_of_the_corpus_that_it_was_written_from(tree):
    read = labels_of.read_splits(tree)
    for split, utterances in read.items():
        made = sorted(generate(split, n_utterances=2, scale=0.1), key=lambda u: u.name)
        for ours, u in zip(utterances, made, strict=True):
            again = labels_of.labelled(u.features, u.times, u.phones, u.gestures)
            assert np.array_equal(ours.features, again.features)
            for name in labels_of.LABELS:
                assert ours.labels[name].tolist() == again.labels[name].tolist()


# ---- the probe


def test_a_probe_of_the_labels_as_one_hot_is_always_right():
    labels = np.array(list("abcb") * 25)
    x = np.float32([[label == c for c in "abc"] for label in labels])
    pipeline, _ = probe.fit(x, labels, x, labels)
    assert (pipeline.predict(x) == labels).all()


def test_a_probe_of_noise_is_right_by_chance():
    random = np.random.default_rng(0)
    x = random.normal(size=(6000, 8)).astype(np.float32)
    labels = random.choice(list("abcd"), 6000)
    parts = x[:3000], labels[:3000], x[3000:4500], labels[3000:4500]
    pipeline, _ = probe.fit(*parts)
    accuracy = probe.balanced_accuracy(labels[4500:], pipeline.predict(x[4500:]))
    assert accuracy == pytest.approx(1 / 4, abs=0.04)  # three standard errors are .034


def test_the_fit_is_where_the_penalised_cross_entropy_is_smallest():
    random = np.random.default_rng(1)
    x = random.normal(size=(300, 5)).astype(np.float32) @ random.normal(size=(5, 5))
    x = x.astype(np.float32)
    labels = random.choice(list("abc"), 300)
    pipeline, _ = probe.fit(x, labels, x, labels, strengths=[0.01])
    weights = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    z = torch.from_numpy((x - x.mean(0)) / x.std(0)).double()
    target = torch.from_numpy(np.unique(labels, return_inverse=True)[1])

    def loss(weights, bias):
        entropy = torch.nn.functional.cross_entropy(z @ weights + bias, target)
        return entropy + 0.01 / 2 * weights.square().sum()

    reference = torch.optim.LBFGS([weights, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        reference.zero_grad()
        value = loss(weights, bias)
        value.backward()
        return value

    reference.step(closure)
    fitted = pipeline[-1]
    ours = loss(torch.from_numpy(fitted.coef_.T).double(), torch.from_numpy(fitted.intercept_))
    assert ours.item() == pytest.approx(loss(weights, bias).item(), abs=1e-5)


def test_scale_and_offset_of_inputs_change_nothing_and_constants_are_ignored():
    random = np.random.default_rng(2)
    labels = random.choice(list("abc"), 400)
    x = (random.normal(size=(400, 4)) + 2 * (labels == "b")[:, None]).astype(np.float32)
    other = np.hstack([1000 * x + 50, np.full((400, 1), 0.1, np.float32)]).astype(np.float32)
    one, two = (probe.fit(a, labels, a, labels, [0.01])[0][-1].coef_ for a in (x, other))
    assert np.allclose(one, two[:, :4], atol=1e-3)
    assert np.allclose(two[:, 4], 0, atol=1e-6)


def test_the_penalty_is_the_one_that_is_best_on_val():
    random = np.random.default_rng(3)
    labels = random.choice(list("ab"), 60)
    x = random.normal(size=(60, 40)).astype(np.float32)
    x[:, 0] += 1.5 * (labels == "a")
    labels_val = random.choice(list("ab"), 500)
    x_val = random.normal(size=(500, 40)).astype(np.float32)
    x_val[:, 0] += 1.5 * (labels_val == "a")
    args = x, labels, x_val, labels_val

    def accuracy(*strengths):
        return (probe.fit(*args, *strengths)[0].predict(x_val) == labels_val).mean()

    each = {l2: accuracy([l2]) for l2 in probe.L2}
    assert len(set(each.values())) > 1, "the strength says nothing"
    assert accuracy() >= each[max(each)]


def test_balanced_accuracy_weights_all_labels_equally():
    labels, predicted = np.array(list("aaab")), np.array(list("aaaa"))
    assert probe.balanced_accuracy(labels, predicted) == 1 / 2
    assert probe.balanced_accuracy(np.array(list("aabb")), np.array(list("abcb"))) == 1 / 2


# ---- shifts


def test_a_shift_delays_and_repeats_the_end_frames():
    assert probe.shifted(np.arange(4), 1).tolist() == [0, 0, 1, 2]
    assert probe.shifted(np.arange(4), -2).tolist() == [2, 3, 3, 3]
    assert probe.shifted(np.arange(2), 3).tolist() == [0, 0]


@pytest.mark.parametrize("delay", probe.DELAYS)
def test_shifts_are_those_of_the_shift_metrics(delay):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    taps = windowed_sinc(SHIFT_TAPS, delay=delay)[None]
    expected = apply_filters(torch.from_numpy(x.T), taps)[0].T
    assert np.allclose(probe.shifted(x, delay), expected, atol=1e-6)


def test_an_encoding_follows_a_shift_of_its_input_by_whole_frames(model):
    features = generate("test", n_utterances=1)[0].features
    view, reach = Codec.of(model).encoding, model.receptive_field() // 2
    z = view(features)
    for delay in probe.DELAYS:
        ends = reach + abs(delay)
        moved = view(probe.shifted(features, delay))
        expected = probe.shifted(z, delay)
        assert np.allclose(moved[ends:-ends], expected[ends:-ends], atol=1e-5)


def test_the_reference_that_knows_the_labels_loses_accuracy_at_borders_alone():
    splits = {"train": [of("aabb")], "val": [of("aabb")], "test": [of("aaaabbbb"), of("aa")]}
    frequent, known = probe.references(splits, "phone")
    assert known.accuracy() == known.balanced() == 1
    assert known.accuracy(1) == known.accuracy(-1) == 9 / 10
    assert known.kept(3) == 7 / 10
    assert frequent.accuracy() == frequent.accuracy(3) == 6 / 10
    assert frequent.balanced() == 1 / 2


def test_context_is_the_neighbouring_frames_with_the_ends_repeated():
    features = np.arange(4 * 14, dtype=np.float32).reshape(4, 14)
    one, three = probe.raw(14)(features), probe.raw(14, 3)(features)
    assert np.array_equal(one, features)
    assert np.array_equal(three[:, 14:28], features)
    # A frame earlier or later, in either order: a probe weighs them as it likes.
    assert np.array_equal(three[:, :14], features[[1, 2, 3, 3]])
    assert np.array_equal(three[:, 28:], features[[0, 0, 1, 2]])
    assert probe.raw(13)(features).shape == (4, 13)


def test_the_untrained_model_is_the_same_for_all_models_of_an_architecture(model):
    train = [of("abab")]
    state = torch.get_rng_state()
    one = probe.untrained(model, train)
    two = probe.untrained(one, train)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(one.state_dict().values(), two.state_dict().values()):
        assert torch.equal(a, b)
    assert not torch.equal(one.conv_weights()[0], model.conv_weights()[0])


# ---- the comparison


def result(*right, model="", input="x"):
    true, found = [np.array(["1"] * len(one)) for one in right], [np.array([*one]) for one in right]
    return probe.Result(model, "phone", input, true, dict.fromkeys(probe.DELAYS, found))


def test_a_difference_has_the_error_of_utterances_not_of_frames():
    gain, error = probe.difference(result("1111", "1100"), result("1100", "1100"))
    # 2 and 0 frames gained, 1 expected of each: sqrt((1 + 1) * 2 / (2 - 1)) / 8
    assert (gain, error) == (0.25, 0.25)
    assert probe.difference(result("11", "10"), result("01", "00")) == (0.5, 0.0)
    gain, error = probe.difference(result("11"), result("00"))
    assert gain == 1
    assert np.isnan(error)


def test_untrained_encoders_of_different_activations_are_separate_inputs(model):
    other = build_model(**model.architecture() | {"activation": "feature_topk"})
    assert probe.baseline_inputs(other)[2] != probe.baseline_inputs(model)[2]
    # An untrained threshold is 0, as that of a ReLU, and without a window nothing else differs.
    same = build_model(**model.architecture() | {"activation": "batch_topk"})
    assert probe.baseline_inputs(same)[2] == probe.baseline_inputs(model)[2]
    x = np.random.default_rng(0).normal(size=(40, model.input_dim)).astype(np.float32)
    expected, found = (
        kernels.autoencode(kernels.untrained(one, 0, one.mean, one.sd), x)[1]
        for one in (model, same)
    )
    np.testing.assert_array_equal(found, expected)


def test_gains_are_those_of_an_encoding_over_its_baselines(model):
    others = [result("1100", "1100", input=name) for name in probe.baseline_inputs(model)]
    results = [*others, result("1111", "1100", model="m", input=probe.ENCODING)]
    results += [r._replace(labels="gesture") for r in results]
    _, _, phone, gesture = probe.gains(results, {"m": model}).splitlines()
    assert phone == "| phone | m | +0.250 ± 0.250 | +0.250 ± 0.250 | +0.250 ± 0.250 |"
    assert gesture == phone.replace("phone", "gesture")


def test_the_program_compares_a_model_with_baselines_and_gives_the_same_numbers_again(
    tree, saved, tmp_path, capsys
):
    out = tmp_path / "made" / "probe.csv"
    command = ("-m", "analysis.probe", str(saved), "--data", str(tree))
    done = forked(*command, "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(out, dtype={"model": str}, keep_default_na=False).to_dict("records")
    inputs = ["most frequent label", "labels themselves", "raw, 1 frame", "raw, 9 frames"]
    inputs += ["untrained, 3 blocks, 16 units", "encoding"]
    assert [(r["labels"], r["input"]) for r in rows] == [
        (labels, name) for labels in ("phone", "gesture") for name in inputs
    ]
    for row in rows[5::6]:
        assert row["model"] == str(saved)
        moved = [row[f"accuracy_20ms_{side}"] for side in ("early", "late")]
        assert row["kept_20ms"] == pytest.approx(np.mean(moved) / row["accuracy"])
    lines = done.stdout.splitlines()
    head, table = lines[0], lines[2:14]
    assert all(line.count(" | ") == head.count(" | ") == 9 for line in table)
    assert all(row["input"] in line for row, line in zip(rows, table))
    gained = lines[-1].split(" | ")
    assert gained[0] == "| gesture"
    raw, encoding = rows[8], rows[11]
    assert gained[2].startswith(f"{encoding['accuracy'] - raw['accuracy']:+.3f} ± ")
    probe.main(command[2:])
    assert capsys.readouterr().out == done.stdout


# ---- mistakes


@pytest.fixture
def refused(saved, capsys):
    """What the program says when it is given these arguments after a model."""

    def run(*argv):
        with pytest.raises(SystemExit) as ended, reporting_errors("probe"):
            probe.main([str(saved), *argv])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_a_tree_without_labels_prints_one_line_that_says_where_labels_come_from(
    refused, trees, tmp_path
):
    for split, path in trees.items():
        (tmp_path / split).symlink_to(path)
    line = refused("--data", str(tmp_path))
    assert "t0_score.json" in line
    assert "python -m emaae demo-data" in line


def test_usage_errors_print_one_line_and_exit_with_status_2(refused, tmp_path, tree):
    assert "must name a .csv file" in refused("--out", "x.txt")
    assert f"{tmp_path / 'train'} does not exist" in refused("--data", str(tmp_path))
    assert "no model at nowhere" in refused("nowhere")
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(
        "--data", str(tree), "--out", str(tmp_path / "file" / "x.csv")
    )


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"phones": [{"label": "A", "start_s": 0}], "gestures": []}',
        '{"phones": 3, "gestures": []}',
        "{",
    ],
)
def test_a_file_that_is_not_a_score_is_refused_by_name(tmp_path, content):
    (tmp_path / "u_score.json").write_text(content)
    with pytest.raises(probe.UserError, match="u_score.json"):
        read_score(tmp_path / "u.npz")
