from itertools import pairwise

import pytest
import torch
from torch import nn

from medgan import config as configs
from medgan.models import build_gan, resgan, z_size
from medgan.models.layers import BatchNorm, MinibatchStddev, activation, channels_at, measuring

NETS = {
    "dcgan": {"model.name": "dcgan"},
    "dcgan-none": {"model.name": "dcgan", "model.norm_d": "none"},
    "cgan": {"model.name": "cgan"},
    "stylegan2-lite": {"model.name": "stylegan2-lite", "model.w_dim": 8},
    "resgan": {"model.name": "resgan"},
}


def small(name, resolution=32, channels=1, classes=("a", "b", "c")):
    overrides = {"model.width": 4, "model.max_width": 16, "model.z_dim": 8, **NETS[name]}
    return configs.for_data(
        configs.load(overrides=overrides),
        resolution=resolution,
        channels=channels,
        classes=classes,
        manifest_sha256="0" * 64,
    )


def gan(name, *shape):
    """(G, D, numbers in a z)."""
    config = small(name, *shape)
    return *build_gan(config), z_size(config)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("resolution", configs.RESOLUTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_keeps_the_contract(name, resolution, channels):
    generator, discriminator, size = gan(name, resolution, channels)
    labels = torch.eye(3)[[0, 1, 2, 0]]
    images = generator(torch.randn(4, size), labels)
    assert images.shape == (4, channels, resolution, resolution)
    assert images.abs().max() <= 1
    logits = discriminator(images, labels)
    assert logits.shape == (4,)
    logits.sum().backward()
    for network in (generator, discriminator):
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["cgan", "stylegan2-lite", "resgan"])
def test_labels_change_what_a_conditional_model_says_and_nothing_else_needs_them(name):
    torch.manual_seed(0)
    generator, discriminator, size = gan(name)
    for module in (generator, discriminator):  # also those that start at zero
        for parameter in module.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    z, a, b = torch.randn(4, size), torch.eye(3)[[0] * 4], torch.eye(3)[[1] * 4]
    images = generator(z, a)
    assert not torch.allclose(images, generator(z, b))
    assert not torch.allclose(discriminator(images, a), discriminator(images, b))
    for call in (lambda: generator(z, None), lambda: discriminator(images, None)):
        with pytest.raises(ValueError, match="needs labels"):
            call()
    plain, _, size = gan("dcgan")
    assert plain(z[:, :size], None).shape == images.shape


@pytest.mark.parametrize("name", ["cgan", "stylegan2-lite", "resgan"])
def test_labels_are_projected_onto_the_features_of_d(name):
    torch.manual_seed(0)
    _, discriminator, _ = gan(name)
    seen, hot = [], torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]])
    discriminator.linear.register_forward_hook(lambda layer, inputs, out: seen.append((inputs[0], out.flatten())))
    logits = discriminator(torch.rand(4, 1, 32, 32) * 2 - 1, hot)
    ((features, score),) = seen
    projected = (features * (hot @ discriminator.embed.weight.T)).sum(1) / features.shape[1] ** 0.5  # 1802.05637, eq. 3
    assert projected.abs().max() > 0.01
    assert torch.allclose(logits, score + projected, atol=1e-5)


def test_residual_blocks_begin_as_the_identity_and_smaller_the_more_there_are():
    torch.manual_seed(0)
    config = configs.load(overrides={"model.name": "resgan", "model.width": 64, "model.blocks": 2})
    config = configs.for_data(config, resolution=32, channels=1, classes=(), manifest_sha256="0" * 64)
    for network in build_gan(config):
        blocks = [module for module in network.modules() if isinstance(module, resgan.Residual)]
        assert len(blocks) == 8
        for block in blocks:
            x = torch.randn(2, block.widen.in_channels, 4, 4)
            assert torch.equal(block(x), x)
            for layer in (block.widen, block.mix):
                inputs = layer.weight[0].numel()
                wanted = (2 / (1 + 0.2**2) / inputs) ** 0.5 * 8**-0.25  # He's, times Fixup's (1901.09321)
                assert layer.weight.std().item() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(("wanted", "found"), [(16, 16), (24, 32), (48, 64), (100, 128)])
def test_groups_are_as_wide_as_they_should_be_or_wider_where_they_would_not_divide(wanted, found):
    block = resgan.Residual(configs.Resgan(group_width=wanted), 64, 8)
    assert block.mix.weight.shape[1] == found


@pytest.mark.parametrize("name", NETS)
def test_no_convolution_before_a_normalisation_has_a_bias(name):
    for network in gan(name)[:2]:
        modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | BatchNorm)]
        if name == "cgan":  # listed by kind there: every convolution of G but the last feeds a normalisation
            convolutions = [m for m in modules if isinstance(m, nn.ConvTranspose2d)]
            assert all(m.bias is None for m in convolutions[:-1])
            continue
        for layer, after in pairwise(modules):
            if isinstance(after, BatchNorm):
                assert layer.bias is None


def test_width_doubles_at_every_halving_up_to_the_most():
    assert channels_at(32, 128, 128) == [32, 64, 128, 128, 128]
    assert channels_at(32, 256, 32) == [32, 64, 128]


def test_batch_norm_is_torchs_own():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(6).double(), nn.BatchNorm2d(6).double()
    with torch.no_grad():
        for target in (ours, theirs):
            target.weight.copy_(torch.arange(6) + 0.5)
            target.bias.copy_(torch.arange(6) - 2.0)
    x = torch.randn(5, 6, 4, 4, dtype=torch.float64) * 3 + 1
    assert torch.allclose(ours(x), theirs(x))


def test_calibrated_statistics_are_those_of_all_passes_together():
    torch.manual_seed(0)
    norm = BatchNorm(6).double().eval()
    passes = [torch.randn(5, 6, 4, 4, dtype=torch.float64) * 3 + 1 for _ in range(4)]
    with torch.no_grad(), measuring(norm):
        for x in passes:
            norm(x)
    together = torch.cat(passes)
    assert torch.allclose(norm.mean, together.mean((0, 2, 3)))
    assert torch.allclose(norm.var, together.var((0, 2, 3), unbiased=False))
    assert not norm.training
    # In evaluation mode a sample no longer depends on the others of its batch.
    assert torch.allclose(norm(together)[:1], norm(together[:1]))


def test_minibatch_stddev_by_its_definition_in_groups_of_neighbours():
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    out = MinibatchStddev(4)(x)
    assert torch.equal(out[:, :3], x)
    for first in (0, 4):
        expected = (x[first : first + 4].var(0, unbiased=False) + 1e-8).sqrt().mean()
        assert torch.allclose(out[first : first + 4, 3], expected.expand(4, 4, 4))
    with pytest.raises(ValueError, match="whole minibatch-stddev groups"):
        MinibatchStddev(4)(x[:6])


def test_minibatch_stddev_of_equal_samples_has_a_finite_gradient():
    x = torch.ones(4, 3, 4, 4, requires_grad=True)
    MinibatchStddev(4)(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("layer", [MinibatchStddev(2), BatchNorm(2)])
def test_layers_of_our_own_have_the_first_and_second_derivatives_they_should(layer):
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), x)
    assert torch.autograd.gradgradcheck(layer, x)
    if isinstance(layer, BatchNorm):  # what ranks compute, on the sums

        def from_sums(x):
            mean, var = layer._batch_statistics(x)
            return torch.cat([mean, var])

        assert torch.autograd.gradcheck(from_sums, x)
        assert torch.autograd.gradgradcheck(from_sums, x)


@pytest.mark.parametrize("slope", [0, 0.2])
def test_an_activation_takes_the_memory_of_its_input_but_of_a_view(slope):
    act = activation("relu", slope)
    x = torch.randn(4, 3, requires_grad=True)
    for kept, inside in ((False, x * 2), (True, (x * 2).t())):
        before = inside.detach().clone()
        out = act(inside)
        assert torch.equal(out, torch.where(before > 0, before, before * slope))
        assert torch.equal(inside, before) == kept
    assert torch.equal(activation("relu", slope, inplace=False)(x), act(x * 1))
    wide = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: act(x * 2), wide)
    assert torch.autograd.gradgradcheck(lambda x: act(x * 2).square(), wide)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_a_residual_block_begins_as_the_identity_and_leaves_its_input(name):
    block = resgan.Residual(configs.Resgan(width=4, activation=name), 4, 3)
    x = torch.randn(2, 4, 8, 8, requires_grad=True) * 1
    before = x.detach().clone()
    assert torch.equal(block(x), before)
    assert torch.equal(x, before)
