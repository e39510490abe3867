"""Convolutions against torch's own, their derivatives against differences, and resampling by its definition."""

import pytest
import torch
import torch.nn.functional as F

from medgan.models import convolution
from medgan.models.convolution import Shape, conv2d, conv_transpose2d, filtered, halved

from .conftest import close

CASES = [  # inputs, side, outputs, kernel, stride, padding, groups
    (3, 5, 2, 3, 1, 1, 1),
    (4, 5, 2, 3, 1, 1, 2),
    (1, 6, 3, 4, 2, 1, 1),
    (3, 6, 2, 4, 2, 1, 1),
    (3, 4, 2, 4, 1, 0, 1),
    (3, 7, 2, 3, 2, 0, 1),
    (2, 7, 3, 3, 2, 1, 1),
    (3, 4, 2, 1, 1, 0, 1),
]
HALVED = [  # the same, in phases or, where they would not cover the input, all the same not
    (3, 5, 2, 3, 2, 0, 1),
    (2, 6, 3, 3, 2, 0, 1),
    (2, 6, 3, 4, 2, 0, 1),
    (2, 8, 2, 5, 3, 0, 1),
    (2, 5, 3, 1, 2, 0, 1),
    (4, 5, 2, 3, 2, 0, 2),
    (2, 5, 3, 3, 2, 1, 1),
]


def drawn(case, dtype=torch.float64):
    inputs, side, outputs, kernel, stride, padding, groups = case
    random = torch.Generator().manual_seed(0)
    shapes = ((2, inputs, side, side), (outputs, inputs // groups, kernel, kernel), (outputs,))
    tensors = [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes]
    return tensors, {"stride": stride, "padding": padding, "groups": groups}


WAYS = ("as chosen", "matrices", "phases", "oneDNN")
EACH = [(way, case) for way in WAYS for case in (HALVED if way == "phases" else CASES)]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """All ways that a convolution is computed, whatever the shapes, and what its shape chooses."""
    if request.param == "as chosen":
        return
    monkeypatch.setattr(convolution, "CHANNELS", 10**9 if request.param == "matrices" else 0)
    monkeypatch.setattr(convolution, "MANY", 0 if request.param == "phases" else 10**9)
    monkeypatch.setattr(convolution, "PHASED", (torch.bfloat16, torch.float64))
    monkeypatch.setattr(Shape, "pixels", 10**9)  # so that channels decide


@pytest.mark.parametrize(("way", "case"), EACH, indirect=["way"])
def test_values_and_both_derivatives_of_a_convolution(case, way):
    (x, weight, bias), more = drawn(case)
    assert torch.allclose(conv2d(x, weight, bias, **more), F.conv2d(x, weight, bias, **more), atol=1e-12)
    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *given: conv2d(*given, **more), tensors)
    assert torch.autograd.gradgradcheck(lambda *given: conv2d(*given, **more), tensors)


@pytest.mark.parametrize(("way", "case"), [(way, case) for way, case in EACH if case[-1] == 1], indirect=["way"])
def test_values_and_both_derivatives_of_a_transposed_convolution(case, way):
    (x, weight, _), more = drawn(case)
    del more["groups"]
    y = torch.randn_like(conv2d(x, weight, **more))
    bias = torch.randn(weight.shape[1], dtype=torch.float64)
    expected = F.conv_transpose2d(y, weight, bias, **more)
    assert torch.allclose(conv_transpose2d(y, weight, bias, **more), expected, atol=1e-12)
    tensors = [tensor.requires_grad_() for tensor in (y, weight, bias)]
    assert torch.autograd.gradcheck(lambda *given: conv_transpose2d(*given, **more), tensors)
    assert torch.autograd.gradgradcheck(lambda *given: conv_transpose2d(*given, **more), tensors)


@pytest.mark.parametrize(("way", "case"), EACH, indirect=["way"])
def test_the_three_products_in_bfloat16_are_as_exact_as_its_rounding(case, way):
    """Some CPUs round once for a product, others once for each place of the kernel; such roundings add as roots do."""
    rounding = 2**-8 * case[3]
    (x, weight, _), more = drawn(case, torch.bfloat16)
    shape = Shape(tuple(x.shape[2:]), tuple(weight.shape[2:]), **more)
    y = torch.randn_like(convolution.convolved(x, weight, None, shape))
    for product, a, b in (
        (lambda a, b: convolution.convolved(a, b, None, shape), x, weight),
        (lambda a, b: convolution.spread(a, b, shape), y, weight),
        (lambda a, b: convolution.correlated(a, b, shape), x, y),
    ):
        exact = product(a.double(), b.double())
        assert (product(a, b).double() - exact).norm() < rounding * exact.norm()


def test_halved_inputs_of_many_channels_have_phases_in_bfloat16():
    shape, y = Shape((65, 65), (3, 3), 2, 0), torch.ones(1, 256, 32, 32)
    assert shape.has_phases(y.bfloat16(), 128)
    assert not shape.has_phases(y.bfloat16(), 64)
    assert not shape.has_phases(y, 128)
    assert not Shape((33, 33), (3, 3), 1, 1).has_phases(y.bfloat16(), 128)


def test_kernels_that_are_no_squares(way):
    x, weight = torch.randn(2, 5, 3, 2, dtype=torch.float64), torch.randn(4, 5, 3, 2, dtype=torch.float64)
    y = conv2d(x, weight)
    assert y.shape == (2, 4, 1, 1)  # one pixel, which has a shorter way
    assert torch.allclose(y, F.conv2d(x, weight), atol=1e-12)
    assert torch.allclose(conv_transpose2d(y, weight), F.conv_transpose2d(y, weight), atol=1e-12)
    assert torch.autograd.gradcheck(conv_transpose2d, (y.requires_grad_(), weight.requires_grad_()))


def test_a_filter_first_used_without_gradients_serves_those_with():
    _kernel = convolution._kernel
    _kernel.cache_clear()
    with torch.inference_mode():
        filtered(torch.ones(1, 2, 4, 4), 1)
    x = torch.ones(1, 2, 4, 4, requires_grad=True)
    convolution._filtered(x, 1, 1.0).sum().backward()
    assert x.grad is not None


def test_autocast_and_memory_order():
    x, weight = torch.randn(2, 1, 16, 16), torch.randn(8, 1, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv2d(x, weight, padding=1)
        assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)  # torch's own leaves the other order here


def test_filters_are_their_own_transposes_and_every_other_pixel_is_taken():
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert close(halved(x), filtered(x, 1)[..., ::2, ::2], terms=16)
    for resampled in (lambda x: filtered(x, 1, 4.0), lambda x: filtered(x, 2), halved):
        assert torch.autograd.gradcheck(resampled, (x,))
        assert torch.autograd.gradgradcheck(resampled, (x,))


@pytest.mark.parametrize("convolve", [conv2d, conv_transpose2d])
def test_patches_are_copied_once_for_a_product_and_its_weights_gradient(monkeypatch, convolve):
    copied, patches = [], convolution.patches
    monkeypatch.setattr(convolution, "patches", lambda *given: copied.append(1) or patches(*given))
    x, weight = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(8, 8, 3, 3, requires_grad=True)
    convolve(x, weight, padding=1).square().sum().backward()
    assert len(copied) == 1
    weight.requires_grad_(False)  # as where D only judges: nothing is kept for it
    assert convolve(x, weight, padding=1).grad_fn.saved_tensors[2] is None
