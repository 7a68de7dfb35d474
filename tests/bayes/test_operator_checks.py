"""What is no linear operator is refused by name: functions, adjoints, matrices."""

from __future__ import annotations

import pytest
import torch
from scipy import sparse

from invbayes import LinearProblem


def scaled_by_batch(x):
    return x / len(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.relu, "operator must be linear, and adjoint its adjoint: <A x, y> = "),
        (lambda x: x + 1, "operator must be linear"),
        (lambda x: x * x.abs(), "operator must be linear"),
        (lambda x: x.clamp(-50, 50), r"operator must be linear: A\(1024 x\) is not 1024 A x"),
        (lambda x: (2 * x).detach(), r"operator must be linear.* <x, A\* y> = 0 for random"),
        (lambda x: x.cumsum(0), "operator must be linear"),
        (lambda x: x - x.mean(0), "operator must map each point of a batch by itself"),
        (scaled_by_batch, "operator must map each point of a batch by itself"),
        (lambda x: x[:, : len(x)], "operator must map each point of a batch by itself"),
        (lambda x: x @ torch.ones(4, 4), r"operator failed on a batch of shape \(2, 3\): mat1"),
        (lambda x: x.double(), r"same dtype torch.float32, got \(2, 3\), torch.float64 for \(2, 3"),
        (lambda x: x / 0, "operator must map a batch to a finite batch"),
        (lambda x: x[:1], r"operator must map a batch .* got \(1, 3\), torch.float32"),
        (lambda x: x.sum(), r"operator must map a batch .* got \(\), torch.float32"),
        (lambda x: x.tolist(), "operator must map a batch .* got <class 'list'>"),
    ],
)
def test_functions_that_are_no_operators_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        LinearProblem(function, 1.0, shape=(3,))


@pytest.mark.parametrize(
    ("adjoint", "message"),
    [
        (lambda y: 3 * y, "operator must be linear, and adjoint its adjoint"),
        (lambda y: (2 + 1e-9) * y, "operator must be linear, and adjoint its adjoint"),
        (lambda y: 2 * y.flip(0), "operator must be linear, and adjoint its adjoint"),
        (
            lambda y: 2 * y[:, :2],
            r"adjoint must map \(n, \*\(3,\)\) to \(n, \*\(3,\)\), got \(2, 2\)",
        ),
        (lambda y: y @ torch.ones(4, 4), r"adjoint failed on a batch of shape \(2, 3\)"),
        (lambda y: 2 * y.float(), "adjoint must map a batch to a finite batch of the same dtype"),
        (0, "adjoint must be callable, got int"),
    ],
)
def test_wrong_adjoints_are_refused(adjoint, message):
    options = {"shape": (3,), "dtype": torch.float64}
    assert LinearProblem(lambda x: 2 * x, 1.0, adjoint=lambda y: 2 * y, **options).dim == 3
    with pytest.raises(ValueError, match=message):
        LinearProblem(lambda x: 2 * x, 1.0, adjoint=adjoint, **options)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.neg,), {}, "shape, that of one point, must be a tuple of ints .* got None"),
        ((torch.neg,), {"shape": 5}, "shape, that of one point, must be a tuple of ints .* got 5"),
        ((torch.neg,), {"shape": (2.5,)}, r"shape must be a positive int, got 2\.5"),
        ((torch.neg,), {"shape": (0,)}, "shape must be a positive int, got 0"),
        (
            (torch.neg,),
            {"shape": (1, 6, 6), "dtype": torch.int64},
            "dtype must be a floating-point dtype",
        ),
        (
            (torch.eye(2),),
            {"shape": (3,)},
            "shape must have as many entries as operator has columns, 2",
        ),
        ((torch.eye(2),), {"shape": 2}, "shape, that of one point, must be a tuple of ints"),
        ((torch.eye(2),), {"adjoint": torch.neg}, "for a function as operator only"),
        ((torch.eye(2),), {"dtype": torch.float32}, "for a function as operator only"),
        ((torch.eye(2).numpy(),), {}, "operator must be a floating-point tensor, got ndarray"),
        ((torch.zeros(2, 3, 2).to_sparse(),), {}, r"shape \(m, d\), got \(2, 3, 2\)"),
        ((torch.zeros(0, 3).to_sparse(),), {}, r"shape \(m, d\), got \(0, 3\)"),
        ((sparse.coo_array(torch.ones(3).numpy()),), {}, r"shape \(m, d\), got \(3,\)"),
        ((torch.ones(2, 2).long().to_sparse(),), {}, "operator must be a floating-point tensor"),
        ((torch.full((2, 2), torch.nan).to_sparse(),), {}, "operator must be finite"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        LinearProblem(*arguments, noise_std=1.0, **options)


@pytest.mark.parametrize("dtype", [torch.int64, "float32"])
def test_only_real_dtypes_are_moved_to(dtype):
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype, got"):
        LinearProblem(torch.eye(2), 1.0).to(dtype=dtype)
