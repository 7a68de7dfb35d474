"""The norm of a convolution against dense singular values, and where its bound is attained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invbayes.networks.convolutions import (
    circular,
    circular_adjoint,
    convolution_norm,
    unit_convolution,
)

SHAPES = pytest.mark.parametrize(
    "shape", [(1, 1, 3, 3), (3, 2, 3, 5), (2, 3, 4, 2), (1, 4, 2, 5), (3, 1, 4, 4), (2, 2, 1, 1)]
)


def kernel(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(weight, size, *, wrap=True):
    """The convolution's matrix: entry k of a kernel of side s stands at k − ⌊(s − 1)/2⌋."""
    shifts = []
    for n, side in zip(size, weight.shape[2:], strict=True):
        offsets = [k - (side - 1) // 2 for k in range(side)]
        if wrap:
            shift = [torch.eye(n).roll(offset, 1) for offset in offsets]
        else:
            shift = [torch.ones(n, n).triu(offset).tril(offset) for offset in offsets]
        shifts.append(torch.stack(shift).to(weight))
    matrix = torch.einsum("bakl,kiu,ljv->bijauv", weight, *shifts)
    return matrix.flatten(3).flatten(0, 2)


def norm_of(matrix):
    return torch.linalg.matrix_norm(matrix, 2).item()


def largest_symbol(weight, n):
    """The largest norm of the symbol on n × n frequencies, all of them, by its definition."""
    waves = []
    for side in weight.shape[2:]:
        turns = torch.outer(torch.arange(side), torch.arange(n)).double() / n
        waves.append(torch.exp(-2j * math.pi * turns))
    symbols = torch.einsum("bakl,ki,lj->ijba", weight.to(torch.complex128), *waves)
    return torch.linalg.matrix_norm(symbols, 2).max().item()


def cosines(weight, grid):
    return math.prod(math.cos(math.pi * (side - 1) / 2 / grid) for side in weight.shape[2:])


@SHAPES
@pytest.mark.parametrize("grid", [5, 12, 13])
def test_on_the_grid_s_own_picture_the_norm_is_the_dense_one_over_the_cosines(shape, grid):
    weight = kernel(shape)
    expected = norm_of(dense(weight, (grid, grid))) / cosines(weight, grid)
    assert convolution_norm(weight, grid).item() == pytest.approx(expected, rel=1e-13)


@SHAPES
@pytest.mark.parametrize("size", [(5, 5), (7, 10), (11, 6), (12, 12)])
def test_no_size_and_no_boundary_exceeds_the_bound(shape, size):
    """Coarse grids leave room in the factor; the finer, the closer to the norm."""
    for seed in range(2):
        weight = kernel(shape, seed)
        norms = [norm_of(dense(weight, size, wrap=wrap)) for wrap in (True, False)]
        for grid in (5, 6, 9, 64):
            assert max(norms) <= convolution_norm(weight, grid).item() * (1 + 1e-13)


@SHAPES
def test_the_bound_is_nearly_attained(shape):
    """On a long picture padded with zeros, by 5 %; over all frequencies, by the factor at most."""
    weight = kernel(shape)
    bound = convolution_norm(weight).item()
    assert norm_of(dense(weight, (16, 16), wrap=False)) >= 0.9 * bound
    assert bound * cosines(weight, 64) * (1 - 1e-13) <= largest_symbol(weight, 256) <= bound


@given(
    st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 5)] * 2),
    st.integers(1, 6),
    st.integers(0, 1000),
)
def test_the_bound_holds_over_all_frequencies_even_on_the_coarsest_grid(shape, above, seed):
    """M. Riesz's inequality for random matrix symbols."""
    weight = kernel(shape, seed)
    grid = max(shape[2:]) - 1 + above
    bound = convolution_norm(weight, grid).item()
    assert bound == pytest.approx(largest_symbol(weight, grid) / cosines(weight, grid), rel=1e-12)
    assert largest_symbol(weight, 12 * grid) <= bound * (1 + 1e-12)


@pytest.mark.parametrize(
    ("grid", "degrees"), [(12, (1, 3)), (12, (2, 3)), (16, (4, 4)), (8, (2, 1))]
)
def test_the_inequality_is_sharp(grid, degrees):
    """Π cos r_i(θ_i − π/N) has the norm one and vanishing slack, if 2 r_i divide N.

    Its coefficients are complex: each becomes a rotation of the plane with a factor.
    """
    weight = torch.zeros(2, 2, *[2 * r + 1 for r in degrees], dtype=torch.float64)
    for first in (-1, 1):
        for second in (-1, 1):
            angle = math.pi / grid * (first * degrees[0] + second * degrees[1])
            turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            entry = (degrees[0] * (1 + first), degrees[1] * (1 + second))
            weight[:, :, *entry] = torch.tensor(turn, dtype=torch.float64) / 4
    assert largest_symbol(weight, 2 * grid) == pytest.approx(1, abs=1e-14)
    assert convolution_norm(weight, grid).item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("grid", [3, 7, 33])
def test_the_inequality_is_sharp_for_an_even_kernel(grid):
    """The difference of neighbours has the norm two, at the frequency π that an odd grid misses."""
    weight = torch.tensor([[[[1.0, -1.0]]]]).double()
    assert convolution_norm(weight, grid).item() == pytest.approx(2, abs=1e-14)
    assert convolution_norm(weight.mT, grid).item() == pytest.approx(2, abs=1e-14)


def test_a_finer_grid_costs_less_slack():
    weight = torch.ones(1, 1, 5, 5).double()
    norms = [convolution_norm(weight, grid).item() / 25 for grid in (64, 128)]
    assert norms == pytest.approx([1.0097, 1.0024], abs=1e-4)
    assert convolution_norm(weight).item() == pytest.approx(25 * norms[0], rel=1e-15)


@SHAPES
def test_the_gradient_of_the_norm(shape):
    """Through the loudest frequency; against finite differences."""
    weight = kernel(shape).requires_grad_()
    for f in (lambda w: convolution_norm(w, 7), lambda w: unit_convolution(w, 7)):
        assert torch.autograd.gradcheck(f, weight, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (4, 1, 7, 7), (5, 4, 3, 3)])
def test_a_normalised_kernel_has_a_norm_of_at_most_one_whatever_the_rounding(shape, dtype):
    for seed in range(12):
        weight = unit_convolution(kernel(shape, seed, dtype) * 10.0 ** (seed - 6))
        assert weight.dtype == dtype
        assert convolution_norm(weight).item() <= 1
        exact = convolution_norm(weight.double()).item()  # as single precision rounds it
        assert 1 - 4000 * torch.finfo(dtype).eps < exact <= 1


@pytest.mark.parametrize("exponent", [-24, 30])
def test_the_scale_of_a_kernel_does_not_matter(exponent):
    """Seven channels out of one: the branch without a decomposition."""
    weight = kernel((7, 1, 5, 5), dtype=torch.float32)
    scaled = unit_convolution(weight * 10.0**exponent)
    torch.testing.assert_close(scaled, unit_convolution(weight))


def test_zero_stays_zero():
    zero = torch.zeros(2, 1, 3, 3)
    assert torch.equal(unit_convolution(zero), zero)
    assert convolution_norm(zero) == 0


@SHAPES
@pytest.mark.parametrize("size", [(5, 5), (5, 8), (9, 6)])
def test_a_convolution_and_its_adjoint_are_their_matrices(shape, size, generator):
    weight = kernel(shape)
    matrix = dense(weight, size)
    x = torch.randn(3, shape[1], *size, generator=generator, dtype=torch.float64)
    b = torch.randn(3, shape[0], *size, generator=generator, dtype=torch.float64)
    found = circular(x, weight), circular_adjoint(b, weight)
    assert found[0].shape == b.shape
    assert found[1].shape == x.shape
    torch.testing.assert_close(found[0].flatten(1), x.flatten(1) @ matrix.mT, rtol=0, atol=1e-13)
    torch.testing.assert_close(found[1].flatten(1), b.flatten(1) @ matrix, rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", [2, 3, 4])
def test_a_picture_as_small_as_the_kernel(side, generator):
    weight = kernel((2, 1, side, side))
    matrix = dense(weight, (side, side))
    x, b = (torch.randn(1, c, side, side, generator=generator).double() for c in (1, 2))
    torch.testing.assert_close(circular(x, weight).flatten(1), x.flatten(1) @ matrix.mT)
    torch.testing.assert_close(circular_adjoint(b, weight).flatten(1), b.flatten(1) @ matrix)
    for small in (x[..., 1:], x[..., 1:, :]):
        with pytest.raises(ValueError, match="x must not be smaller than the kernel, got"):
            circular(small, weight)


@pytest.mark.parametrize(
    ("weight", "grid", "message"),
    [
        ([1.0], 64, "weight must be a floating-point tensor, got list"),
        (torch.ones(1, 1, 3), 64, r"weight must have shape .*, got \(1, 1, 3\)"),
        (torch.ones(0, 1, 3, 3), 64, r"weight must have shape .*, got \(0, 1, 3, 3\)"),
        (torch.full((1, 1, 3, 3), math.nan), 64, "weight must be finite"),
        (torch.ones(1, 1, 3, 3).half(), 64, "weight must be in single or double precision"),
        (torch.ones(1, 1, 3, 3), 2, "grid must be an int of at least 3, got 2"),
        (torch.ones(1, 1, 1, 4), 3, "grid must be an int of at least 4, got 3"),
        (torch.ones(1, 1, 3, 3), 64.0, r"grid must be an int of at least 3, got 64\.0"),
    ],
)
def test_bad_arguments_are_named(weight, grid, message):
    with pytest.raises(ValueError, match=message):
        convolution_norm(weight, grid)


@pytest.mark.parametrize("side", [20, 64, 80])
def test_the_grid_follows_the_kernel(side):
    weight = kernel((1, 1, side, 3))
    spectrum = torch.fft.fft2(weight, s=(1024, 1024)).abs().max()
    assert spectrum <= convolution_norm(weight) <= 2 * spectrum
    assert convolution_norm(unit_convolution(weight)) <= 1
