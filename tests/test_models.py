"""The model: shapes, widths, exact zeros, negative output, and padding that changes nothing."""

import itertools

import pytest
import torch

from emaae.models import NORMS, CNNAutoEncoder, MaskedBatchNorm, build_model


@pytest.mark.parametrize("inner_size", [1, 2, 3, 7, 64, 100, 513, 768, 1024, 2048])
@pytest.mark.parametrize(("n_encoder", "n_decoder"), itertools.product((2, 3, 4, 5), repeat=2))
def test_every_size_keeps_the_length_and_the_encoder_never_narrows(
    inner_size, n_encoder, n_decoder
):
    with torch.device("meta"):
        model = CNNAutoEncoder(14, inner_size, n_encoder, n_decoder)
        y, z = model(torch.empty(2, 14, 9))
    assert z.shape == (2, inner_size, 9)
    assert y.shape == (2, 14, 9)
    assert (len(model.encoder), len(model.decoder)) == (n_encoder, n_decoder)
    widths = [b.conv.out_channels for b in model.encoder][1 if n_encoder == 5 else 0 :]
    assert widths == sorted(widths)


@pytest.mark.parametrize(
    ("inner_size", "n_blocks", "encoder", "decoder"),
    [
        (1024, 5, [13, 13, 128, 256, 512, 1024], [1024, 1024, 512, 256, 128, 13]),
        (768, 5, [13, 13, 128, 256, 256, 768], [768, 768, 256, 256, 128, 13]),
        (1024, 4, [13, 128, 256, 512, 1024], [1024, 512, 256, 128, 13]),
        (768, 4, [13, 128, 256, 256, 768], [768, 256, 256, 128, 13]),
        (1024, 3, [13, 128, 512, 1024], [1024, 512, 128, 13]),
        (768, 3, [13, 128, 256, 768], [768, 256, 128, 13]),
        (1024, 2, [13, 512, 1024], [1024, 512, 13]),
        (768, 2, [13, 512, 768], [768, 512, 13]),
    ],
)
def test_presets_have_the_documented_widths(inner_size, n_blocks, encoder, decoder):
    with torch.device("meta"):
        model = CNNAutoEncoder(13, inner_size, n_blocks, n_blocks)
    for blocks, widths in ((model.encoder, encoder), (model.decoder, decoder)):
        assert [b.conv.in_channels for b in blocks] == widths[:-1]
        assert [b.conv.out_channels for b in blocks] == widths[1:]
        kernels = [b.conv.kernel_size[0] for b in blocks]
        assert kernels == ([3, 3] if n_blocks == 2 else [5] + [3] * (n_blocks - 1))


@pytest.mark.parametrize(
    ("inner_size", "n_encoder", "n_decoder", "millions"),
    [(1024, 2, 2, 3.19), (1024, 3, 3, 4.61), (1024, 5, 3, 4.90), (1024, 5, 5, 9.39)]
    + [(768, 3, 3, 1.79)],
)
def test_parameter_counts_are_those_of_the_published_models(
    inner_size, n_encoder, n_decoder, millions
):
    with torch.device("meta"):
        model = CNNAutoEncoder(13, inner_size, n_encoder, n_decoder)
    # The published ones have batch normalisation (two numbers per channel) before each block.
    norms = sum(2 * block.conv.in_channels for block in (*model.encoder, *model.decoder))
    assert round((sum(p.numel() for p in model.parameters()) + norms) / 1e6, 2) == millions


@pytest.fixture(params=NORMS)
def model(request) -> CNNAutoEncoder:
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 40, 3, 3, norm=request.param)
    model.normalise(torch.randn(13), torch.rand(13) + 0.5)
    return model


def test_zeros_are_exact_and_the_output_can_be_negative(model):
    y, z = model(torch.randn(2, 13, 50))
    assert 0.05 < float((z == 0).float().mean()) < 0.95
    assert z.min().item() == 0
    assert y.min().item() < 0


def test_the_output_is_linear_and_reaches_its_bias():
    model = CNNAutoEncoder(13, 40, 3, 3)
    with torch.no_grad():
        for weight in model.conv_weights():
            weight.zero_()
        model.decoder[-1].conv.bias.fill_(-1)
    assert torch.equal(model(torch.randn(1, 13, 20)).y, -torch.ones(1, 13, 20))


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_no_number(model, training):
    if training and model.norm in ("batch", "original"):
        pytest.skip("batch statistics depend on the batch by definition; see the test below")
    model.train(training)
    x = torch.randn(1, 13, 30)
    padded = torch.cat([x, 100 * torch.randn(1, 13, 17)], 2)
    mask = torch.tensor([1.0] * 30 + [0.0] * 17)[None, None]
    y, z = model(x)
    y_padded, z_padded = model(padded, mask)
    assert torch.allclose(z, z_padded[..., :30], atol=1e-5)
    assert torch.allclose(y, y_padded[..., :30], atol=1e-5)
    assert z_padded[..., 30:].abs().sum() == 0
    assert y_padded[..., 30:].abs().sum() == 0


@pytest.mark.parametrize("mask", [None, torch.ones(4, 1, 30)])
def test_batch_normalisation_learns_in_bfloat16_with_and_without_a_mask(mask):
    model = CNNAutoEncoder(13, 8, 2, 2, norm="batch").train()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 13, 30), mask)
    assert model.encoder[0].norm.running_var.dtype == torch.float32


def test_batch_statistics_count_real_frames_only():
    h = torch.randn(3, 5, 20) * 3 + 1
    lengths = (20, 11, 4)
    mask = torch.stack([(torch.arange(20) < n).float()[None] for n in lengths])
    real = torch.cat([h[i, :, :n] for i, n in enumerate(lengths)], 1)[None]
    masked, plain = MaskedBatchNorm(5), torch.nn.BatchNorm1d(5)
    out, expected = masked(torch.where(mask > 0, h, 1e3), mask, True), plain(real)
    got = torch.cat([out[i, :, :n] for i, n in enumerate(lengths)], 1)[None]
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(masked.running_mean, plain.running_mean, atol=1e-6)
    assert torch.allclose(masked.running_var, plain.running_var, atol=1e-5)
    plain.eval()
    assert torch.allclose(masked(h, mask), plain(h), atol=1e-6)


def test_an_utterance_shorter_than_the_receptive_field_works(model):
    model.eval()
    assert model.receptive_field() == 9
    assert model(torch.randn(1, 13, 1)).y.shape == (1, 13, 1)


def test_the_receptive_field_is_the_range_of_an_impulse_response():
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 30, 5, 2).double()
    x = torch.randn(1, 13, 61, dtype=torch.float64)
    moved = x.clone()
    moved[..., 30] += 1.0
    with torch.no_grad():
        for block in model.encoder:
            block.conv.bias.fill_(3.0)  # keeps units awake, so that the impulse is seen
        reached = (model.encode(moved) - model.encode(x)).abs().sum((0, 1)).nonzero().ravel()
    assert len(reached) == model.receptive_field() == 13
    assert int(reached[0]) == 30 - 6


def test_a_shift_by_whole_frames_shifts_the_encoding_and_changes_nothing_else(model):
    model.eval()
    x = torch.randn(1, 13, 60)
    z, shifted = model.encode(x), model.encode(x.roll(5, 2))
    inner = slice(20, 40)
    assert torch.allclose(z[..., inner], shifted[..., 25:45], atol=1e-5)


def test_input_and_output_are_in_raw_units():
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 30, 2, 2)
    raw = CNNAutoEncoder(13, 30, 2, 2)
    raw.load_state_dict(model.state_dict())
    mean, sd = torch.linspace(-3, 150, 13), torch.linspace(0.1, 40, 13)
    raw.normalise(mean, sd)
    x = torch.randn(2, 13, 25)
    y, z = raw(x * sd[:, None] + mean[:, None])
    assert torch.allclose(z, model(x).z, atol=1e-4)
    assert torch.allclose((y - mean[:, None]) / sd[:, None], model(x).y, atol=1e-4)


def test_a_constant_channel_is_centred_and_not_divided_by_zero():
    model = CNNAutoEncoder(13, 30, 2, 2)
    sd = torch.ones(13)
    sd[4] = 0
    model.normalise(torch.full((13,), 2.0), sd)
    assert torch.equal(model.standardise(torch.full((1, 13, 3), 2.0)), torch.zeros(1, 13, 3))


def test_the_type_names_the_architecture_and_the_architecture_rebuilds_it(model):
    assert model.get_type() == "CNN_Autoencoder_ne3_nd3_innersz40"
    again = build_model(**model.architecture())
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_encoder": 6}, "n_encoder must be 2, 3, 4 or 5 blocks, got 6"),
        ({"inner_size": 0}, "must be at least 1, got 0"),
        ({"norm": "group"}, "norm must be one of none, layer, batch, original, got 'group'"),
    ],
)
def test_impossible_architectures_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CNNAutoEncoder(**wrong)
