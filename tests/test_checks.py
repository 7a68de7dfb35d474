"""The checks: what passes, and that each refusal names the argument, the wish and what came."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from invbayes import _checks as checks
from invbayes._random import random_part, random_signs, standard_normal

NAN, INF = float("nan"), float("inf")
LIKE = torch.zeros(1)


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2), Fraction(2)]
)
def test_numbers_of_every_kind_are_numbers(value):
    found = checks.number("size", value)
    assert found == 2
    assert type(found) is float
    checks.check_positive("size", value)
    checks.check_not_negative("size", value)


@pytest.mark.parametrize(
    "value", ["2", None, [2.0], 2j, True, np.True_, torch.tensor(True), torch.ones(1), object]
)
@pytest.mark.parametrize("check", ["number", "check_positive", "check_not_negative", "check_share"])
def test_what_is_no_number_is_named(check, value):
    with pytest.raises(ValueError, match="size must be a number, got "):
        getattr(checks, check)("size", value)


ARRAY = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("check", "good", "bad", "message"),
    [
        ("check_positive", 5e-324, 0.0, "size must be finite and > 0, got 0"),
        ("check_positive", 1e308, INF, "size must be finite and > 0, got inf"),
        ("check_positive", 1, NAN, "size must be finite and > 0, got nan"),
        ("check_positive", 1, 10**400, "size must be finite, got an int beyond any float"),
        ("check_not_negative", 0, -1e-300, "size must be finite and >= 0, got -1e-300"),
        ("check_not_negative", 0.0, INF, "size must be finite and >= 0, got inf"),
        ("check_not_negative", 0.5, NAN, "size must be finite and >= 0, got nan"),
        ("check_share", 0, 1.0, r"size must lie in \[0, 1\), got 1"),
        ("check_share", 1 - 2**-53, -1e-9, r"size must lie in \[0, 1\), got -1e-09"),
        ("check_share", 0.5, NAN, r"size must lie in \[0, 1\), got nan"),
        ("check_count", 1, 0, "size must be a positive int, got 0"),
        ("check_count", 2**63 - 1, 2**63, "size must be a positive int, got 9223372036854775808"),
        ("check_count", 3, 3.0, r"size must be a positive int, got 3\.0"),
        ("check_count", 3, True, "size must be a positive int, got True"),
        ("check_flag", True, 1, "size must be True or False, got 1"),
        ("check_flag", False, "no", "size must be True or False, got 'no'"),
        ("check_callable", abs, 3, "size must be callable, got int"),
        ("check_dtype", torch.float16, torch.int64, "size must be a floating-point dtype, got"),
        ("check_dtype", torch.float64, torch.complex64, "got torch.complex64"),
        ("check_dtype", torch.float32, "float32", "size must be a floating-point dtype, got 'fl"),
        ("check_tensor", ARRAY, [1.0], "size must be a floating-point tensor, got list"),
        ("check_tensor", ARRAY, ARRAY.long(), "size must be a floating-point tensor, got torch.i"),
        ("check_tensor", ARRAY, ARRAY + 0j, "size must be a floating-point tensor, got torch.c"),
        ("check_tensor", ARRAY, ARRAY.to_sparse(), "size must be a dense tensor .* torch.sparse"),
        ("check_tensor", ARRAY * NAN, ARRAY.to("meta"), "size must be a dense .* got a meta"),
        ("check_float_tensor", ARRAY, ARRAY * NAN, "size must be finite, got NaN or infinite"),
        ("check_float_tensor", ARRAY[:0], ARRAY * INF, "size must be finite, got NaN or infinite"),
    ],
)
def test_each_check_passes_the_good_and_names_the_bad(check, good, bad, message):
    getattr(checks, check)("size", good)
    with pytest.raises(ValueError, match=message):
        getattr(checks, check)("size", bad)


def test_a_count_may_have_another_least_number():
    checks.check_count("size", 2, least=2)
    checks.check_count("size", 0, least=0)
    with pytest.raises(ValueError, match="size must be an int of at least 2, got 1"):
        checks.check_count("size", 1, least=2)


@pytest.mark.parametrize("value", [0, 1, NAN, -0.5, 1.5])
def test_a_contraction_lies_between_zero_and_one(value):
    checks.check_contraction(0.5)
    with pytest.raises(ValueError, match=r"lipschitz must lie in \(0, 1\), got "):
        checks.check_contraction(value)
    with pytest.raises(ValueError, match="lipschitz must be a number, got None"):
        checks.check_contraction(None)


@pytest.mark.parametrize("lead", [(), (4,), (0,), (2, 5)])
def test_points_have_any_leading_axes(lead):
    checks.check_points("x", torch.zeros(*lead, 3), 3, like=LIKE)
    checks.check_points("x", torch.zeros(*lead, 1, 3), (1, 3), like=LIKE)
    checks.check_fits("x", torch.zeros(*lead, 7, 3), (None, 3), like=LIKE)
    checks.check_fits("x", torch.full((*lead, 3), NAN), (3,), like=LIKE)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 2), r"x must have shape \(\*, any, 3\), got \(4, 2\)"),
        (torch.zeros(3), r"x must have shape \(\*, any, 3\), got \(3,\)"),
        (torch.tensor(0.0), r"x must have shape \(\*, any, 3\), got \(\)"),
        (torch.zeros(4, 3).double(), "x must have dtype torch.float32, got torch.float64"),
        ([0.0], "x must be a floating-point tensor, got list"),
    ],
)
def test_points_that_do_not_fit_are_named(x, message):
    with pytest.raises(ValueError, match=message):
        checks.check_fits("x", x, (None, 3), like=LIKE)


def test_one_vector_has_one_axis():
    checks.check_vector("x", torch.zeros(3), 3, like=LIKE)
    with pytest.raises(ValueError, match=r"x must have shape \(3,\), got \(1, 3\)"):
        checks.check_vector("x", torch.zeros(1, 3), 3, like=LIKE)
    with pytest.raises(ValueError, match="x must be finite"):
        checks.check_vector("x", torch.full((3,), NAN), 3, like=LIKE)


def test_the_device_is_named(monkeypatch):
    """As if there were a second device; the meta device has no values."""
    monkeypatch.setattr(checks, "check_tensor", lambda *_: None)
    for call in (
        lambda: checks.check_fits("x", torch.zeros(3, device="meta"), (3,), like=LIKE),
        lambda: checks.check_same_dtype(y=LIKE, x=torch.zeros(3, device="meta")),
    ):
        with pytest.raises(ValueError, match=r"x must be on .*cpu, got meta"):
            call()


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [
        ((3,), (None, None), r"\(m, d\)"),
        ((2, 3, 1), (None, None), r"\(m, d\)"),
        ((0, 3), (None, None), r"\(m, d\)"),
        ((2, 3), (3, None), r"\(3, d\)"),
        ((2, 3), (None, 2), r"\(m, 2\)"),
        ((2, 3), (3, 2), r"\(3, 2\)"),
    ],
)
def test_a_matrix_has_the_size_that_is_asked(shape, size, wanted):
    checks.check_matrix("A", torch.ones(2, 3), None)
    checks.check_matrix("A", torch.ones(2, 3), 2, 3)
    with pytest.raises(ValueError, match=f"A must be a matrix of shape {wanted}, got "):
        checks.check_matrix("A", torch.ones(*shape), *size)


def test_a_definite_matrix_is_symmetric_and_positive():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    checks.check_definite("M", matrix, 2)
    checks.check_definite("M", matrix + 1e-7 * matrix.triu(1), 2)
    for bad, came in [
        (matrix + 1e-5 * matrix.triu(1), "relative asymmetry 5e-06 and least eigenvalue 0.38"),
        (torch.diag(torch.tensor([1.0, -2.0])), "asymmetry 0 and least eigenvalue -2"),
        (torch.ones(2, 2), "relative asymmetry 0 .* add a small multiple of the identity"),
        (torch.zeros(2, 2), "relative asymmetry 0 and least eigenvalue 0"),
    ]:
        with pytest.raises(ValueError, match=f"M must be symmetric positive definite.*{came}"):
            checks.check_definite("M", bad, 2)
    with pytest.raises(ValueError, match=r"M must be a matrix of shape \(3, 3\), got \(2, 2\)"):
        checks.check_definite("M", matrix, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_singular_to_rounding_is_not_definite(dtype, size):
    """What a processor's rounding may leave of the last pivot, and what is meant, in any units."""
    eps, units = torch.finfo(dtype).eps, torch.tensor([1.0, size], dtype=dtype)
    for last, definite in [(eps, False), (4 * eps, False), (16 * eps, True), (1.0, True)]:
        matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0 + last]], dtype=dtype) * units.outer(units)
        factors = checks.lower_factors(torch.stack([torch.eye(2, dtype=dtype), matrix]))
        assert (factors is not None) == definite
    assert torch.allclose(factors[1] @ factors[1].mT, matrix, rtol=4 * eps)
    assert torch.equal(factors, factors.tril())


def test_tensors_share_their_dtype():
    checks.check_same_dtype(x=torch.zeros(2), y=torch.ones(3), z=torch.ones(1))
    with pytest.raises(ValueError, match=r"z must have the dtype of x, torch\.float32, got"):
        checks.check_same_dtype(x=torch.zeros(2), y=torch.ones(3), z=torch.ones(1).half())


def test_an_instance_is_one_of_the_classes():
    checks.check_instance("x", 1, str, int)
    with pytest.raises(ValueError, match="x must be a str or int, got list"):
        checks.check_instance("x", [], str, int)


def test_values_that_a_transformation_hides_are_not_read(monkeypatch):
    """Under `vmap`, and while compiling; elsewhere they are."""
    bad = torch.full((2, 3), NAN)
    assert not checks.reads_finite(bad)
    torch.func.vmap(lambda x: checks.check_float_tensor("x", x) or x)(bad)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert checks.reads_finite(bad)


def test_random_numbers_follow_the_data_and_their_generator():
    def draws(seed):
        generator = torch.Generator().manual_seed(seed)
        like = torch.zeros(500, dtype=torch.float64)
        return (
            standard_normal((500, 2), like, generator),
            random_signs(like, generator),
            random_part(500, 5, generator),
        )

    (normal, signs, part), again, other = draws(0), draws(0), draws(1)
    assert all(torch.equal(a, b) for a, b in zip((normal, signs, part), again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip((normal, signs, part), other, strict=True))
    assert normal.dtype == signs.dtype == torch.float64
    assert normal.shape == (500, 2)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert len(set(part.tolist())) == 5
    assert part.min() >= 0
    assert sorted(random_part(6, 9, None).tolist()) == list(range(6))
    assert random_signs(torch.zeros(3), None).shape == standard_normal((3,), LIKE, None).shape
