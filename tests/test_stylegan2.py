"""StyleGAN2-lite's parts against their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d

from medgan import config as configs
from medgan import sample
from medgan.models import build_gan, z_size
from medgan.models.layers import measuring
from medgan.models.stylegan2 import FILTER, Conv, Halving, Linear, ModulatedConv, StyledLayer, filtered

OVERRIDES = {"model.name": "stylegan2-lite", "model.width": 4, "model.max_width": 8, "model.z_dim": 8, "model.w_dim": 6}
CLASSES = ("a", "b", "c")


def generator(classes=CLASSES, **more):
    torch.manual_seed(0)
    config = configs.for_data(
        configs.load(overrides={**OVERRIDES, **{key.replace("__", "."): value for key, value in more.items()}}),
        resolution=32,
        channels=1,
        classes=classes,
        manifest_sha256="0" * 64,
    )
    return build_gan(config)[0].double(), config


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_one_weight_per_sample(up, demodulate):
    torch.manual_seed(0)
    layer = ModulatedConv(6, 5, 3, 4, up=up, demodulate=demodulate).double()
    x = torch.randn(3, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    expected = []
    styles = F.linear(w / 4**0.5, layer.style.weight, layer.style.bias)
    for one, style in zip(x, styles, strict=True):
        weight = layer.weight / (6 * 9) ** 0.5 * style[None, :, None, None]  # eq. 1
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()  # eq. 3
        if up:
            wide = F.conv_transpose2d(one[None], weight.transpose(0, 1), stride=2)
            expected.append(filtered(wide, 1, gain=4))
        else:
            expected.append(F.conv2d(one[None], weight, padding=1))
    torch.nn.init.normal_(layer.bias)
    out, reference = layer(x, w), torch.cat(expected) + layer.bias[:, None, None]
    assert out.shape == (3, 5, 16, 16) if up else (3, 5, 8, 8)
    assert torch.allclose(out, reference, rtol=0, atol=1e-12)
    direction = torch.randn_like(out)
    inputs = (x, w, layer.weight, layer.style.weight)
    for ours, theirs in zip(
        torch.autograd.grad((out * direction).sum(), inputs),
        torch.autograd.grad((reference * direction).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_styles_begin_at_one_and_biases_and_noise_have_the_gain_of_what_they_are_added_to():
    torch.manual_seed(0)
    config = configs.load(overrides=OVERRIDES).model
    layer = StyledLayer(config, 6, 5, up=False).double()
    x, noise, w = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((6, 8, 8), (1, 8, 8), (6,)))
    weight = layer.conv.weight / (6 * 9) ** 0.5
    weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
    torch.nn.init.normal_(layer.conv.bias)
    torch.nn.init.constant_(layer.noise_strength, 0.3)
    plain = F.conv2d(x, weight, padding=1) + 0.3 * noise + layer.conv.bias[:, None, None]
    assert torch.allclose(layer(x, 0 * w, noise), F.leaky_relu(2**0.5 * plain, 0.2), rtol=1e-6)
    conv = Conv(6, 5, 3, gain=3.0).double()
    torch.nn.init.normal_(conv.bias)
    plain = F.conv2d(x, conv.weight / (6 * 9) ** 0.5, conv.bias, padding=1)
    assert torch.allclose(conv(x), 3 * plain)


def test_filtering_is_scipys_convolution():
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    kernel = np.outer(FILTER, FILTER) / 64
    expected = [convolve2d(channel.numpy(), kernel, "full")[2:-2, 2:-2] for channel in x[0]]
    assert np.allclose(filtered(x, 1)[0].numpy(), expected)


def test_halving_filters_first_and_doubling_an_image_uses_the_same_filter():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for kernel in (1, 3):
        layer = Conv(3, 4, kernel, gain=1, bias=False, down=True).double()
        blurred = filtered(F.pad(x, (4, 4, 4, 4)), 0)  # zeros around, as far as the filter and the kernel reach
        everywhere = F.conv2d(blurred, layer.weight * layer.scale, padding=0)
        first = (everywhere.shape[-1] - 2 * (8 // 2) + 1) // 2
        assert torch.allclose(layer(x), everywhere[..., first : first + 8 : 2, first : first + 8 : 2])
    spread = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    spread[..., ::2, ::2] = x
    doubled = filtered(F.pad(spread, (2, 1, 2, 1)), 0, gain=4)
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear")
    assert torch.allclose(doubled[..., 1:-1, 1:-1], bilinear[..., 1:-1, 1:-1])


@pytest.mark.parametrize("lr", [1.0, 0.01])
def test_a_layer_keeps_the_variance_and_learns_at_its_share_of_the_rate(lr):
    torch.manual_seed(0)
    x = torch.randn(4000, 64)
    layer = Linear(64, 64, lr=lr)
    assert layer(x).var().item() == pytest.approx(1, rel=0.1)
    before = (layer.weight * layer.scale).detach()
    adam = torch.optim.Adam(layer.parameters(), 0.1)
    layer(x).square().mean().backward()
    adam.step()
    moved = (layer.weight * layer.scale - before).abs().mean().item()
    assert moved == pytest.approx(0.1 * lr / 64**0.5, rel=0.02)  # Adam's first step is its rate, per stored weight


def test_truncation_draws_every_sample_towards_the_mean_of_its_class():
    network, config = generator()
    pool = np.eye(3, dtype=np.uint8)[[0, 1, 2, 2]]
    sample.calibrate(network, config, pool, passes=2, size=64)
    mapping = network.mapping
    labels = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    z = torch.randn(4, config.model.z_dim, dtype=torch.float64)
    whole = mapping(z, labels)
    mapping.truncation = 0.0
    assert torch.allclose(mapping(z, labels), mapping.average[[1, 1, 2, 3]])
    mapping.truncation = 0.5
    assert torch.allclose(mapping(z, labels), (whole + mapping.average[[1, 1, 2, 3]]) / 2)
    nothing, two = torch.zeros(1, 3).double(), torch.tensor([[1.0, 1.0, 0.0]]).double()
    mapping.truncation = 0.0
    assert torch.allclose(mapping(z[:1], nothing), mapping.average[:1])
    assert torch.allclose(mapping(z[:1], two), mapping.average[1:3].mean(0))


def test_the_measured_average_is_the_mean_w_of_all_and_of_each_class():
    network, config = generator()
    z = torch.randn(50, config.model.z_dim, dtype=torch.float64)
    labels = torch.eye(3, dtype=torch.float64)[torch.arange(50) % 2]  # nobody of the third class
    w = network.mapping(z, labels)
    with torch.no_grad(), measuring(network.mapping):
        network.mapping(z[:20], labels[:20])
        network.mapping(z[20:], labels[20:])
    average = network.mapping.average
    assert torch.allclose(average[0], w.mean(0))
    assert torch.allclose(average[1], w[::2].mean(0))
    assert torch.allclose(average[2], w[1::2].mean(0))
    assert torch.allclose(average[3], w.mean(0))  # what is not known is everybody's


def test_the_noise_of_a_sample_is_part_of_its_z():
    network, config = generator()
    assert z_size(config) == 8 + 4**2 + 8**2 + 16**2 + 32**2
    labels = torch.eye(3).double()[:2]
    z = torch.randn(2, z_size(config), dtype=torch.float64)
    other = z.clone()
    other[0, -1] += 5  # one pixel of the finest level, of one sample
    assert torch.equal(network(z, labels), network(other, labels))  # strengths start at 0
    for level in network.levels:
        for layer in level.layers:
            torch.nn.init.ones_(layer.noise_strength)
    moved = (network(z, labels) - network(other, labels)).abs()
    assert moved[0].sum() > 0
    assert moved[1].sum() == 0
    assert moved[0, 0, :24, :24].sum() == 0  # far from that pixel nothing changes


def test_without_classes_it_is_unconditional():
    network, config = generator(())
    assert not config.conditional
    z = torch.randn(2, z_size(config), dtype=torch.float64)
    assert network(z, torch.zeros(2, 0)).shape == (2, 1, 32, 32)
    sample.calibrate(network, config, np.zeros((5, 0), np.uint8), passes=1, size=8)
    assert network.mapping.average.shape == (1, 6)


def test_style_mixing_takes_finer_levels_from_a_second_w_as_often_as_it_says():
    network, config = generator(model__style_mixing=0.5, model__noise=False)
    assert z_size(config) == 2 * 8 + 1
    z, labels = torch.randn(4000, z_size(config), dtype=torch.float64), torch.eye(3).repeat(1334, 1)[:4000].double()
    levels = network.styles(z, labels)
    assert levels.shape == (4000, 4, 6)
    first, second = network.mapping(z[:, :8], labels), network.mapping(z[:, 8:16], labels)
    assert torch.allclose(levels[:, 0], first, rtol=0, atol=1e-12)
    from_second = (levels - second[:, None]).abs().amax(2) < 1e-12
    assert (from_second[:, 1:] >= from_second[:, :-1]).all()  # once the second, then always
    shares = from_second.double().mean(0)
    assert torch.allclose(shares, torch.tensor([0, 1 / 6, 2 / 6, 3 / 6], dtype=torch.float64), atol=0.03)
    images, w = network(z[:2], labels[:2], with_w=True)
    assert torch.allclose(w, levels[:2], atol=1e-12)
    assert torch.equal(images, network(z[:2], labels[:2]))
    network.eval()
    assert torch.allclose(network.styles(z, labels), first[:, None].expand(-1, 4, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("up", [False, True])
def test_modulation_has_the_first_and_second_derivatives_it_should(up):
    layer = ModulatedConv(2, 2, 3, 2, up=up).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x, w))
    assert torch.autograd.gradgradcheck(layer, (x, w))


def test_the_mapping_network_reads_directions_and_learns_more_slowly():
    network, config = generator()
    z, labels = torch.randn(5, 8, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1]]
    assert torch.allclose(network.mapping(3 * z, labels), network.mapping(z, labels))
    assert not torch.allclose(network.mapping(-z, labels), network.mapping(z, labels))
    for layer in network.mapping.layers:  # weights that are larger by as much as they count for less
        inputs = layer.weight.shape[1]
        assert layer.weight.std().item() == pytest.approx(1 / config.model.mapping_lr, rel=0.2)
        assert layer.scale == pytest.approx(2**0.5 * config.model.mapping_lr / inputs**0.5)


def test_a_residual_block_of_d_keeps_the_variance():
    torch.manual_seed(0)
    block = Halving(generator()[1].model, 64, 64)
    flat = torch.randn(8, 64, 1, 1).expand(8, 64, 32, 32)  # without detail, which the filter takes away
    out = block(flat)
    assert out.shape == (8, 64, 16, 16)
    assert out.square().mean().item() == pytest.approx(1, rel=0.2)
    assert block.skip(flat).square().mean().item() == pytest.approx(0.5, rel=0.2)


def test_d_sees_how_varied_its_group_is():
    torch.manual_seed(0)
    config = generator(classes=())[1]
    discriminator = build_gan(config)[1].double()
    group = config.model.stddev_group
    assert group > 1
    alone, others = (torch.randn(count, 1, 32, 32, dtype=torch.float64) for count in (1, group - 1))
    varied, same = torch.cat([alone, others]), alone.expand(group, -1, -1, -1)
    assert discriminator(varied, None)[0] != discriminator(same, None)[0]
