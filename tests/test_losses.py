import math

import pytest
import torch

from medgan.losses import LOSSES, r1_penalty

REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])


def test_bce_by_hand():
    loss = LOSSES["bce"]
    by_hand = [math.log(1 + math.exp(-r)) + math.log(1 + math.exp(f)) for r, f in ((2.0, 0.5), (-1.0, -3.0))]
    assert loss.discriminator(REAL, FAKE).tolist() == pytest.approx(by_hand)
    assert loss.generator(FAKE).tolist() == pytest.approx([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(3))])


def test_hinge_by_hand():
    loss = LOSSES["hinge"]
    assert loss.discriminator(REAL, FAKE).tolist() == pytest.approx([0 + 1.5, 2 + 0])
    assert loss.generator(FAKE).tolist() == [-0.5, 3.0]


def test_bce_is_torchs_own():
    ones, zeros = torch.ones(2), torch.zeros(2)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(REAL, ones, reduction="none") + bce(FAKE, zeros, reduction="none")
    assert torch.allclose(LOSSES["bce"].discriminator(REAL, FAKE), expected)


def test_r1_of_a_linear_d_is_its_squared_weight():
    weight = torch.randn(1, 4, 4, dtype=torch.float64)
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images, (images * weight).sum((1, 2, 3)))
    assert torch.allclose(penalty, weight.square().sum().expand(3))


def test_r1_of_a_quadratic_d_is_four_times_the_squared_image_and_can_be_differentiated():
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images, images.square().sum((1, 2, 3)))
    assert torch.allclose(penalty, 4 * images.square().sum((1, 2, 3)))
    penalty.sum().backward()
    assert torch.allclose(images.grad, 8 * images.detach())


def test_r1_needs_images_that_need_a_gradient():
    images = torch.randn(3, 1, 4, 4)
    with pytest.raises(RuntimeError):
        r1_penalty(images, images.sum((1, 2, 3)))
