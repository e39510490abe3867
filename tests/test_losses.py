import math

import pytest
import torch

from medgan.losses import LOSSES, gradient_penalty, path_lengths, squared_gradient
from medgan.models import convolution

PAIRS = ((2.0, 0.5), (-1.0, -3.0))
REAL, FAKE = (torch.tensor(values) for values in zip(*PAIRS, strict=True))


def test_bce_by_hand():
    loss = LOSSES["bce"]
    by_hand = [math.log(1 + math.exp(-r)) + math.log(1 + math.exp(f)) for r, f in PAIRS]
    assert loss.discriminator(REAL, FAKE).tolist() == pytest.approx(by_hand)
    assert loss.generator(REAL, FAKE).tolist() == pytest.approx([math.log(1 + math.exp(-f)) for _, f in PAIRS])


def test_hinge_by_hand():
    loss = LOSSES["hinge"]
    assert loss.discriminator(REAL, FAKE).tolist() == pytest.approx([0 + 1.5, 2 + 0])
    assert loss.generator(REAL, FAKE).tolist() == [-0.5, 3.0]


def test_least_squares_wasserstein_and_relativistic_pairs_by_hand():
    by_hand = {
        "lsgan": ([(1 + 0.25) / 2, (4 + 9) / 2], [0.25 / 2, 16 / 2]),
        "wgan-gp": ([-1.5, -2.0], [-0.5, 3.0]),
        "rpgan": ([math.log(1 + math.exp(f - r)) for r, f in PAIRS], [math.log(1 + math.exp(r - f)) for r, f in PAIRS]),
    }
    for name, (discriminator, generator) in by_hand.items():
        assert LOSSES[name].discriminator(REAL, FAKE).tolist() == pytest.approx(discriminator)
        assert LOSSES[name].generator(REAL, FAKE).tolist() == pytest.approx(generator)


@pytest.mark.parametrize("name", LOSSES)
def test_g_learns_towards_what_d_calls_real_and_d_away_from_it(name):
    real, fake = torch.tensor([0.3], requires_grad=True), torch.tensor([0.2], requires_grad=True)
    loss = LOSSES[name]
    (down,) = torch.autograd.grad(loss.generator(real, fake).sum(), fake)
    up_real, up_fake = torch.autograd.grad(loss.discriminator(real, fake).sum(), (real, fake))
    assert down < 0 < up_fake
    assert up_real < 0
    assert loss.paired == (name == "rpgan")


def test_bce_is_torchs_own():
    ones, zeros = torch.ones(2), torch.zeros(2)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(REAL, ones, reduction="none") + bce(FAKE, zeros, reduction="none")
    assert torch.allclose(LOSSES["bce"].discriminator(REAL, FAKE), expected)


def test_r1_of_a_linear_d_is_its_squared_weight():
    weight = torch.randn(1, 4, 4, dtype=torch.float64)
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = squared_gradient(images, (images * weight).sum((1, 2, 3)))
    assert torch.allclose(penalty, weight.square().sum().expand(3))


def test_r1_of_a_quadratic_d_is_four_times_the_squared_image_and_can_be_differentiated():
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = squared_gradient(images, images.square().sum((1, 2, 3)))
    assert torch.allclose(penalty, 4 * images.square().sum((1, 2, 3)))
    penalty.sum().backward()
    assert torch.allclose(images.grad, 8 * images.detach())


def test_r1_needs_images_that_need_a_gradient():
    images = torch.randn(3, 1, 4, 4)
    with pytest.raises(RuntimeError):
        squared_gradient(images, images.sum((1, 2, 3)))


def test_the_gradient_penalty_of_a_linear_and_of_a_quadratic_d():
    weight = torch.randn(1, 4, 4, dtype=torch.float64)
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    linear = gradient_penalty(images, (images * weight).sum((1, 2, 3)))
    assert torch.allclose(linear, (weight.norm() - 1).square().expand(3))
    quadratic = gradient_penalty(images, images.square().sum((1, 2, 3)))
    length = images.square().sum((1, 2, 3)).sqrt()
    assert torch.allclose(quadratic, (2 * length - 1).square())
    flat = torch.zeros(2, 1, 4, 4, requires_grad=True)
    gradient_penalty(flat, flat.square().sum((1, 2, 3))).sum().backward()
    assert flat.grad.isfinite().all()


def test_the_path_length_of_a_linear_g_is_the_length_of_its_transpose_at_y():
    matrix = torch.randn(2, 6, 16, dtype=torch.float64)  # of each of two levels, from w to the pixels
    w = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    images = torch.einsum("nld,ldp->np", w, matrix).view(3, 1, 4, 4)
    along = torch.einsum("ldp,np->nld", matrix, y.flatten(1)) / 4  # 4: the root of 16 pixels
    assert torch.allclose(path_lengths(images, w, y), along.square().sum(2).mean(1).sqrt())


def test_the_second_derivative_of_path_lengths_is_right():
    y = torch.randn(2, 1, 2, 2, dtype=torch.float64)

    def lengths(w):
        return path_lengths((w.square().sum((1, 2))[:, None, None, None] * y.tanh()).sin(), w, y)

    assert torch.autograd.gradcheck(lengths, torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True))


def test_a_penalty_asks_for_gradients_of_weights_once_and_gets_torchs_own(monkeypatch):
    random = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=random).requires_grad_()
    weights = [torch.randn(shape, dtype=torch.float64, generator=random) for shape in ((4, 2, 3, 3), (1, 4, 8, 8))]
    asked, correlated = [], convolution.correlated
    monkeypatch.setattr(convolution, "correlated", lambda *given: (asked.append(given), correlated(*given))[1])

    def gradients(conv2d):
        weight, last = (tensor.clone().requires_grad_() for tensor in weights)
        logits = conv2d(torch.tanh(conv2d(images, weight, padding=1)), last).flatten()
        penalty = squared_gradient(images, logits)
        assert asked == []
        return torch.autograd.grad(penalty.sum(), (weight, last))

    expected = gradients(torch.nn.functional.conv2d)
    for ours, theirs in zip(gradients(convolution.conv2d), expected, strict=True):
        assert torch.allclose(ours, theirs)
    assert asked
