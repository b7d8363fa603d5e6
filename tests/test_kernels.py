"""Kernels and primitives of small networks, compared with values computed by hand."""

import numpy as np
import pytest
import torch

from analysis.kernels import autoencode, busiest_units, first_kernels, primitives
from emaae.models import CNNAutoEncoder


def model(n_decoder=2) -> CNNAutoEncoder:
    torch.manual_seed(0)
    return CNNAutoEncoder(inner_size=8, n_encoder=2, n_decoder=n_decoder).eval()


def test_the_primitive_of_a_linear_decoder_is_its_kernel():
    net = model()
    with torch.no_grad():
        # The first layer copies unit 3 into its hidden channel 0, and all else is 0.
        for block in net.decoder:
            block.conv.weight.zero_()
        net.decoder[0].conv.bias.zero_()
        net.decoder[0].conv.weight[0, 3, 1] = 1.0
        net.decoder[1].conv.weight[5, 0] = torch.tensor([1.0, 2.0, 4.0])
    found = primitives(net, np.array([3, 4]))
    assert found.shape == (2, 13, 5) == (2, 13, net.decoder_receptive_field())
    # A convolution layer correlates: an impulse comes out as the kernel turned round.
    assert found[0, 5].tolist() == [0, 4, 2, 1, 0]
    assert np.abs(np.delete(found[0], 5, 0)).max() == np.abs(found[1]).max() == 0


@pytest.mark.parametrize("n_decoder", [2, 3, 4, 5])
def test_a_primitive_is_zero_outside_its_field_and_free_of_edge_effects(n_decoder):
    net = model(n_decoder=n_decoder)
    z = torch.zeros(2, 8, 101)
    z[0, 2, 50] = 1
    with torch.no_grad():
        y = net.standardise(net.decode(z))
    whole = (y[0] - y[1]).numpy()
    half = net.decoder_receptive_field() // 2
    found = primitives(net, np.array([2]))[0]
    np.testing.assert_allclose(found, whole[:, 50 - half : 51 + half], atol=1e-6)
    assert np.abs(whole[:, : 50 - half]).max() == np.abs(whole[:, 51 + half :]).max() == 0


def test_primitives_are_in_standard_deviations_of_the_channels():
    net, scaled = model(), model()
    scaled.normalise(torch.full((13,), 5.0), torch.full((13,), 10.0))
    units = np.array([1, 6])
    np.testing.assert_allclose(primitives(net, units), primitives(scaled, units), atol=1e-6)


def test_the_busiest_units_do_not_depend_on_how_scale_is_shared():
    net, z = model(), np.random.default_rng(0).random((20, 8))
    z[:, 5] = 0
    before = busiest_units(net, z, 8)
    assert len(before) == 7
    assert 5 not in before
    scale = torch.linspace(0.1, 9, 8)
    with torch.no_grad():
        net.decoder[0].conv.weight /= scale[:, None]
    assert busiest_units(net, z * scale.numpy(), 8).tolist() == before.tolist()


def test_kernels_are_sorted_with_the_largest_first():
    found = first_kernels(model(), 3)
    norms = np.sqrt((found**2).sum((1, 2)))
    assert found.shape == (3, 13, 3)
    assert (np.diff(norms) <= 0).all()


def test_features_go_through_the_model_and_back():
    net, x = model(), torch.randn(1, 13, 9)
    y, z = autoencode(net, x[0].T.numpy())
    np.testing.assert_allclose(z, net.encode(x)[0].T.detach(), atol=1e-6)
    assert y.shape == (9, 13)
