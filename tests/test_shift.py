"""Shift tolerance: values computed by hand, identities, degenerate encodings, invariances."""

import math
import warnings

import pytest
import torch
from conftest import speech, stir
from test_training import split_of

from emaae.data.split import Split
from emaae.filters import apply_filters, decode_filtered, windowed_sinc
from emaae.models import NORMS, CNNAutoEncoder
from emaae.shift import (
    CUTOFFS,
    LAGS,
    SHIFTS,
    CovarianceSums,
    Moments,
    SelfSimilaritySums,
    epoch_metrics,
    half_life_ms,
    persistence,
    persistence_null,
    sample,
    shift_tolerance,
)

SMOOTHING = torch.stack([windowed_sinc(101, cutoff) for cutoff in CUTOFFS])


def random_model(split: Split, norm: str = "none", n_decoder: int = 3) -> CNNAutoEncoder:
    """An untrained model with random biases and batch statistics."""
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 24, 3, n_decoder, norm=norm)
    stir(model, 0.1)
    model.normalise(*split.mean_and_sd())
    return model.eval()


def linear_model(split: Split, encoder: torch.Tensor | None = None) -> CNNAutoEncoder:
    """A model that is affine, since a bias keeps it above zero: z = encoder * x + 50.

    encoder: kernel (13, 13, 3); without one, z = x + 50 and y = x.
    """
    model = CNNAutoEncoder(13, 32, 2, 2)
    identity = torch.zeros(13, 13, 3)
    identity[:, :, 1] = torch.eye(13)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.zero_()
            if name.endswith("weight"):
                tensor[:13, :13] = identity
        model.encoder[0].conv.bias[:13] = 50
        model.decoder[1].conv.bias[:13] = -50
        if encoder is not None:
            model.encoder[0].conv.weight[:13] = encoder
    model.normalise(*split.mean_and_sd())
    return model.double().eval()


def similarity(*utterances: torch.Tensor) -> tuple[SelfSimilaritySums, Moments]:
    """Self-similarity of utterances (C, T) over all lags."""
    moments, sums = Moments(), SelfSimilaritySums()
    for z in utterances:
        moments.add(z)
    for z in utterances:
        sums.add(moments.centre(z))
    return sums, moments


def curve(*utterances: torch.Tensor) -> list[float]:
    sums, moments = similarity(*utterances)
    return sums.curve(moments.live)


def participation_ratio(z: torch.Tensor) -> float:
    moments, sums = Moments(), CovarianceSums()
    moments.add(z)
    sums.add(moments.centre(z))
    return sums.participation_ratio()


# ---- hand values


def test_the_self_similarity_of_a_sine_is_its_cosine():
    sine = torch.sin(2 * math.pi * torch.arange(2000) / 20)[None] + 7
    found = curve(sine)
    assert [found[k] for k in (0, 1, 5, 10)] == pytest.approx([1, 0.951, 0, -1], abs=2e-3)


def test_the_half_life_of_a_first_order_process_is_that_of_its_decay():
    found = [0.9**k for k in LAGS]
    assert half_life_ms(found) == pytest.approx(131.6, abs=0.5)
    random, x = torch.Generator().manual_seed(0), [torch.zeros(8)]
    for step in torch.randn(20_000, 8, generator=random):
        x.append(0.9 * x[-1] + step)
    assert curve(torch.stack(x, 1)) == pytest.approx(found, abs=0.03)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0.75, 0.25], 30),
        ([1, 0.5, 0.0], 20),
        ([1, -1], 5),
        ([1.0] * 26, 500),  # 500 or more
        ([1, 0.9, math.nan], math.nan),
        ([math.nan] * 26, math.nan),
    ],
)
def test_the_half_life_is_where_the_curve_first_falls_to_one_half(values, expected):
    assert half_life_ms(values) == pytest.approx(expected, nan_ok=True)


def test_pairs_of_frames_lie_within_one_utterance():
    # every utterance is constant: whatever is compared across their border differs
    up, down = torch.ones(1, 30), -torch.ones(1, 30)
    assert curve(up, down)[:26] == pytest.approx([1.0] * 26)


def test_a_lag_longer_than_every_utterance_is_undefined_and_leaves_others_unchanged():
    found = curve(torch.randn(3, 5), torch.randn(3, 4))
    assert not any(map(math.isnan, found[:5]))
    assert all(map(math.isnan, found[5:]))


def test_self_similarity_is_the_mean_over_live_units():
    sine = torch.sin(2 * math.pi * torch.arange(400) / 20)
    dead = torch.stack([sine, torch.zeros(400), torch.full((400,), 3.0), 1e-5 * torch.randn(400)])
    assert curve(dead) == pytest.approx(curve(sine[None]))


def test_the_energy_of_a_change_is_twice_one_minus_self_similarity():
    torch.manual_seed(1)
    utterances = [torch.randn(5, n).double().cumsum(1).relu() for n in (40, 90)]
    sums, moments = similarity(*utterances)
    whole = sums.products.sum(1) / sums.energy.sum(1)
    for k in (1, 4, 25):
        pairs = [moments.centre(z) for z in utterances]
        change = sum((z[:, k:] - z[:, :-k]).square().sum() for z in pairs)
        energy = sum((z[:, k:].square() + z[:, :-k].square()).sum() / 2 for z in pairs)
        assert float(change / energy) == pytest.approx(2 * (1 - float(whole[k])), abs=1e-5)


def test_the_participation_ratio_counts_equal_directions():
    independent = torch.randn(7, 500).double()
    centred = independent - independent.mean(1, keepdim=True)
    whitened = torch.linalg.cholesky(centred @ centred.T).inverse() @ centred
    assert participation_ratio(whitened + 3) == pytest.approx(7)
    rank_one = torch.randn(9, 1) * torch.randn(1, 300)
    assert participation_ratio(rank_one) == pytest.approx(1, rel=1e-4)
    assert participation_ratio(torch.randn(1, 50)) == pytest.approx(1)
    z = torch.randn(6, 80).double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(z))
    expected = eigenvalues.sum() ** 2 / eigenvalues.square().sum()
    assert participation_ratio(z) == pytest.approx(float(expected))


def test_copies_of_a_unit_count_as_one_distinct_unit():
    """[1, 2, 3, 2] three times with different scales, its mirror, and a nearly unrelated unit."""
    z = torch.tensor([[1.0, 2, 3, 2], [2, 4, 6, 4], [9, 10, 11, 10], [3, 2, 1, 2], [1, 1, 3, 1]])
    sums = CovarianceSums()
    sums.add(torch.cat([z - z.mean(1, keepdim=True), torch.zeros(2, 4)]))
    # r of the first with the last is .816.
    assert sums.copy_weights().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1, 0, 0])


def within(*utterances: torch.Tensor) -> SelfSimilaritySums:
    sums = SelfSimilaritySums()
    for z in utterances:
        sums.add(z - z.mean(1, keepdim=True))
    return sums


def test_differences_between_utterances_are_not_persistence_within_them():
    torch.manual_seed(0)
    utterances = [torch.randn(3, n) for n in (80, 120)]
    offset = [z + 100 * i for i, z in enumerate(utterances)]
    assert curve(*offset)[1] > 0.99
    plain = [torch.randn(2, n).cumsum(1) for n in (80, 120)]
    expected = persistence(within(*utterances), within(*plain))
    assert persistence(within(*offset), within(*plain)) == pytest.approx(expected, rel=1e-4)
    assert expected < 0.5
    constant = [torch.ones(1, n) for n in (80, 120)]
    assert math.isnan(persistence(within(*constant), within(*plain)))


def test_a_weighted_curve_is_that_of_the_unit_with_all_weight():
    fast, slow = torch.randn(1, 300), torch.randn(1, 300).cumsum(1)
    sums, moments = similarity(torch.cat([fast, slow]))
    assert sums.curve(torch.tensor([0.0, 2.0])) == pytest.approx(curve(slow))
    assert sums.curve(torch.tensor([1.0, 1.0])) == pytest.approx(sums.curve(moments.live))


# ---- filters


@pytest.mark.parametrize("delay", SHIFTS)
def test_a_shift_delays_a_slow_sine_by_its_fraction_of_a_frame(delay):
    time = torch.arange(200, dtype=torch.float64)
    taps = windowed_sinc(33, delay=delay)
    for period in (4, 10, 60):  # 12.5 Hz and below
        sine = torch.sin(2 * math.pi * time / period)[None]
        expected = torch.sin(2 * math.pi * (time - delay) / period)
        assert torch.allclose(
            apply_filters(sine, taps[None])[0, 0, 20:-20], expected[20:-20], atol=2e-4
        )
    assert float(taps.sum()) == pytest.approx(1)


@pytest.mark.parametrize("n_frames", [1, 10, 300])
def test_filters_leave_a_constant_unchanged_up_to_its_ends(n_frames):
    constant = torch.full((2, n_frames), 3.0)
    both = torch.cat([SMOOTHING[:2], SMOOTHING[-2:]])
    assert torch.allclose(apply_filters(constant, both), torch.full((4, 2, n_frames), 3.0))


def test_a_low_pass_filter_keeps_low_halves_its_cutoff_and_removes_high_frequencies():
    time = torch.arange(1000, dtype=torch.float64)
    for cutoff, taps in zip(CUTOFFS, SMOOTHING):
        for frequency, gain in ((cutoff - 0.05, 1), (cutoff, 0.5), (cutoff + 0.1, 0)):
            sine = torch.cos(math.pi * frequency * time)[None]
            out = apply_filters(sine, taps[None])[0, :, 100:-100]
            assert torch.allclose(out, gain * sine[:, 100:-100], atol=6e-3), (cutoff, frequency)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_decoder", [2, 3, 5])
def test_filtering_after_the_first_convolution_is_filtering_the_encoding(norm, n_decoder):
    model = random_model(split_of(60), norm, n_decoder).double()
    for n_frames in (1, 2, 3, 4, 5, 10, 54, 55, 130):
        z = torch.rand(24, n_frames).double()
        with torch.no_grad():
            plain = model.standardise(model.decode(apply_filters(z, SMOOTHING)))
            assert torch.allclose(decode_filtered(model, z, SMOOTHING), plain, atol=1e-12), n_frames
            single = decode_filtered(model.float(), z.float(), SMOOTHING)
        model.double()
        assert torch.allclose(single, plain.float(), atol=1e-5)


# ---- models


def test_an_identity_model_has_the_tolerance_of_the_input():
    split = split_of(300, 200, 250)
    row, curves = shift_tolerance(linear_model(split), split)
    for name in ("persistence", "persistence_within", "persistence_weighted"):
        assert row[f"shift/{name}"] == pytest.approx(1)
    assert row["shift/half_life_ms"] == pytest.approx(row["shift/input_half_life_ms"])
    assert row["shift/gain_10ms"] == pytest.approx(1)
    assert row["shift/equivariance_error"] < 1e-20
    assert row["shift/participation_ratio"] == pytest.approx(row["shift/input_participation_ratio"])
    assert row["shift/noise_gain"] == pytest.approx(1, abs=0.02)
    assert row["lowpass/gain_0.2"] == pytest.approx(1)
    assert row["lowpass/auc_ratio"] == pytest.approx(1)
    for name in ("self_similarity", "gain", "lowpass"):
        assert curves[name]["encoding"] == pytest.approx(curves[name]["input"])


def test_an_encoding_that_has_learnt_nothing_loses_persistence_by_being_sparse():
    split = split_of(300, 200, 250)
    model = random_model(split)
    found = [persistence_null(model, split, zeros) for zeros in (0.0, 0.5, 0.85, 0.97)]
    assert found[0] == pytest.approx(1, abs=0.15)  # almost linear
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.8 * found[0]
    assert math.isnan(persistence_null(model, split, 1.0))
    assert math.isnan(persistence_null(model, split, math.nan))


def test_one_slow_unit_raises_the_weighted_persistence_and_not_the_plain_one():
    """All variance in one slow direction: only the weights tell it from a slow code."""
    split = split_of(300, 300)
    split.frames[2:] -= 0.9 * split.frames[1:-1]
    kernel = torch.eye(13)[:, :, None] * torch.tensor([-0.5, 0, 0.5])
    kernel[0] = 1000 * torch.tensor([1 / 3, 1 / 3, 1 / 3]) * torch.eye(13)[0][:, None]
    row, _ = shift_tolerance(linear_model(split, kernel), split)
    assert row["shift/persistence_weighted"] > 1.5 * row["shift/persistence"]
    assert row["shift/participation_ratio"] == pytest.approx(1, abs=0.01)


def test_the_scale_of_the_encoding_does_not_matter():
    split = split_of(120, 90)
    model = random_model(split).double()
    before, _ = shift_tolerance(model, split)
    with torch.no_grad():
        model.encoder[-1].conv.weight.mul_(8), model.encoder[-1].conv.bias.mul_(8)
        model.decoder[0].conv.weight.div_(8)
    after, _ = shift_tolerance(model, split)
    assert after == pytest.approx(before)


def test_an_affine_encoder_is_equivariant_and_any_encoder_is_to_whole_frames():
    split = split_of(150, 80)
    kernel = torch.randn(13, 13, 3, generator=torch.Generator().manual_seed(0))
    affine, _ = shift_tolerance(linear_model(split, kernel), split)
    assert affine["shift/equivariance_error"] < 1e-8
    model, x = random_model(split).double(), split[0].T.double()
    late = apply_filters(x, windowed_sinc(33, delay=2.0)[None])
    with torch.no_grad():
        moved, z = model.encode(late)[0], model.encode(x[None])[0]
    assert torch.allclose(moved[:, 30:-30], z[:, 28:-32])
    assert shift_tolerance(model, split)[0]["shift/equivariance_error"] > 1e-6


def test_a_slower_encoding_is_measured_as_more_tolerant():
    split = split_of(300, 300)
    split.frames[2:] -= 0.9 * split.frames[1:-1]  # faster than the speech of these tests
    average, difference = torch.tensor([1 / 3, 1 / 3, 1 / 3]), torch.tensor([-0.5, 0, 0.5])
    eye = torch.eye(13)[:, :, None]
    slow, slow_curves = shift_tolerance(linear_model(split, eye * average), split)
    fast, fast_curves = shift_tolerance(linear_model(split, eye * difference), split)
    assert slow["shift/persistence"] > 1 > fast["shift/persistence"]
    assert all(gain < 1 for gain in slow_curves["gain"]["encoding"])
    assert all(gain > 1 for gain in fast_curves["gain"]["encoding"][:3])
    similar = "self_similarity_20ms"
    assert slow[f"shift/{similar}"] > slow[f"shift/input_{similar}"] > fast[f"shift/{similar}"]


def test_gain_counts_frames_without_edge_effects():
    split = split_of(200)
    model = random_model(split).double()
    row, curves = shift_tolerance(model, split)
    x = split[0].T.double()
    margin = model.receptive_field() // 2 + 16
    inside = slice(margin, 200 - margin)
    with torch.no_grad():
        z = model.encode(x[None])[0]
        for i, delay in enumerate(SHIFTS):
            late = apply_filters(x, windowed_sinc(33, delay=delay)[None])[0]
            parts = []
            for a, b in ((z, model.encode(late[None])[0]), map(model.standardise, (x, late))):
                spread = (a - a.mean(1, keepdim=True))[:, inside].square().sum()
                parts.append(float((b - a)[:, inside].square().sum() / spread))
            expected = math.sqrt(parts[0] / parts[1])
            assert curves["gain"]["encoding"][i] == pytest.approx(expected)
    assert row["shift/gain_10ms"] == curves["gain"]["encoding"][1]


def test_the_fvu_after_smoothing_is_that_of_the_definition():
    split = split_of(90, 10)
    model = random_model(split).double()
    row, curves = shift_tolerance(model, split)
    every = model.standardise(split.frames.T.double())
    variance = (every - every.mean(1, keepdim=True)).square().sum()
    errors = torch.zeros(2, len(CUTOFFS), dtype=torch.float64)
    with torch.no_grad():
        for i in range(2):
            raw = split[i].T.double()
            x, z = model.standardise(raw), model.encode(raw[None])[0]
            y = model.standardise(model.decode(apply_filters(z, SMOOTHING)))
            errors[0] += (y - x).square().sum((1, 2))
            errors[1] += (apply_filters(x, SMOOTHING) - x).square().sum((1, 2))
    fvu_z, fvu_x = (errors / variance).tolist()
    assert curves["lowpass"]["encoding"] == pytest.approx(fvu_z)
    assert curves["lowpass"]["input"] == pytest.approx(fvu_x)
    assert row["lowpass/gain_0.2"] == pytest.approx(fvu_x[3] / fvu_z[3])
    assert row["lowpass/auc_ratio"] == pytest.approx(sum(fvu_z) / sum(fvu_x))


@pytest.mark.parametrize("bias", [-1, 0.7], ids=["dead", "constant"])
def test_a_dead_or_constant_encoding_is_undefined_and_the_input_is_not(bias):
    split = split_of(100, 60)
    model = random_model(split)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encoder[-1].conv.weight.zero_(), model.encoder[-1].conv.bias.fill_(bias)
        row, curves = shift_tolerance(model, split)
        cheap = epoch_metrics(model, split)
    for name, value in row.items():
        assert math.isnan(value) == ("input" not in name), name
    assert all(map(math.isnan, cheap.values()))
    for both in curves.values():
        assert all(map(math.isnan, both["encoding"]))
        assert not any(map(math.isnan, both["input"]))


def test_an_input_that_never_moves_is_undefined():
    split = split_of(60)
    split.frames[:] = 0.3
    row, _ = shift_tolerance(random_model(split_of(80)), split)
    assert all(math.isnan(value) for name, value in row.items() if "input" in name)
    assert math.isnan(row["shift/noise_gain"])
    assert math.isnan(row["lowpass/gain_0.2"])


@pytest.mark.parametrize("lengths", [(1,), (3, 2), (10,), (30, 12)])
def test_short_utterances_are_measured_at_the_lags_and_filters_that_fit(lengths):
    split = split_of(*lengths)
    row, curves = shift_tolerance(random_model(split_of(80)), split)
    assert all(map(math.isnan, curves["gain"]["encoding"]))
    assert math.isnan(row["shift/equivariance_error"])
    defined = [not math.isnan(value) for value in curves["self_similarity"]["encoding"]]
    assert sum(defined) == (0 if lengths == (1,) else min(26, max(lengths)))
    assert math.isnan(row["lowpass/gain_0.2"]) == (lengths == (1,))


def test_an_encoding_of_one_unit_is_measured():
    split = split_of(120)
    torch.manual_seed(3)
    model = CNNAutoEncoder(13, 1, 2, 2)
    model.normalise(*split.mean_and_sd())
    with torch.no_grad():
        for block in model.encoder:
            block.conv.bias.fill_(2.0)
    row, _ = shift_tolerance(model, split)
    assert row["shift/participation_ratio"] == pytest.approx(1)
    assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize("norm", NORMS)
def test_neither_the_order_of_files_nor_another_call_changes_a_number(norm):
    pairs = [(f"u{i}", speech(n, seed=i)) for i, n in enumerate((80, 7, 110, 50))]
    split = Split.from_utterances(pairs)
    model = random_model(split, norm).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    row, curves = shift_tolerance(model, split)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert shift_tolerance(model, split) == (row, curves)
    again, _ = shift_tolerance(model, Split.from_utterances(pairs[::-1]))
    assert again == pytest.approx(row, rel=1e-5)
    cheap = epoch_metrics(model, split)
    assert model.training
    for name, value in cheap.items():
        assert value == pytest.approx(row[f"shift/{name}"], rel=1e-4, abs=1e-5), name


def test_no_eigenvalue_is_computed(monkeypatch):
    for name in ("eigh", "eigvalsh", "eig", "eigvals", "svd", "svdvals", "pca_lowrank"):
        if hasattr(torch.linalg, name):
            monkeypatch.setattr(torch.linalg, name, None)
    split = split_of(60)
    assert math.isfinite(shift_tolerance(random_model(split), split)[0]["shift/noise_gain"])


def test_a_sample_is_spread_over_lengths_whatever_the_order_and_has_at_most_32_utterances():
    pairs = [(f"u{i:03}", speech(3 + i % 50, seed=0)) for i in range(600)]
    found = sample(Split.from_utterances(pairs))
    assert found.names == sample(Split.from_utterances(pairs[::-1])).names
    assert len(found) == 32
    assert (found.lengths[0], found.lengths[-1]) == (3, 52)
    assert len(sample(Split.from_utterances(pairs[:200]))) == 12
    assert len(sample(Split.from_utterances(pairs[:28]))) == 8
    few = Split.from_utterances(pairs[:3])
    assert sorted(sample(few).names) == sorted(few.names)
    assert torch.equal(found[0], torch.from_numpy(speech(3, seed=0))[:, [*range(12), 13]])
