"""Samples have the right distribution, fresh or evenly spread; a data set stays in pairs."""

from __future__ import annotations

import pickle

import pytest
import torch

from invbayes import (
    GaussianMixture,
    LinearProblem,
    fixed_samples,
    fresh_noise,
    fresh_samples,
    quasi_samples,
    random_crops,
)
from tests.conftest import assert_mean_close, random_mixture, random_operator


@pytest.fixture
def setting(generator):
    prior = random_mixture(2, 3, generator)
    return prior, LinearProblem(random_operator(3, 2, 2, generator), noise_std=0.4)


def outer(v):
    return v[:, :, None] * v[:, None, :]


def test_fresh_samples_have_the_right_moments(setting, generator):
    prior, problem = setting
    x, z = fresh_samples(prior, problem)(40_000, generator)
    noise = z - x @ problem.normal_operator
    assert_mean_close(x, prior.mean)
    assert_mean_close(outer(x - prior.mean), prior.covariance)
    assert_mean_close(noise, torch.zeros(2).double())
    assert_mean_close(outer(noise), 0.4**2 * problem.normal_operator)
    assert_mean_close(x[:, :, None] * noise[:, None, :], torch.zeros(2, 2).double())


def test_quasi_samples_have_the_right_moments_to_half_a_standard_error(setting, generator):
    """Averages over 2¹⁴ points are far closer than independent points would bring all of them."""
    prior, problem = setting
    x, z = quasi_samples(prior, problem, generator=generator)(2**14, None)
    noise = z - x @ problem.normal_operator
    for values, expected in [
        (x, prior.mean),
        (outer(x - prior.mean), prior.covariance),
        (noise, torch.zeros(2).double()),
        (outer(noise), 0.4**2 * problem.normal_operator),
        (x[:, :, None] * noise[:, None, :], torch.zeros(2, 2).double()),
        (prior.score(x), torch.zeros(2).double()),
    ]:
        assert_mean_close(values, expected, z_max=0.5)


def test_quasi_samples_have_the_right_distribution(setting, generator):
    """Probabilities of boxes, against independent samples."""
    prior, problem = setting
    x, _ = quasi_samples(prior, problem, generator=generator)(2**14, None)
    other = prior.sample(200_000, generator=generator)
    corners = prior.sample(20, generator=generator)
    below = (x[:, None] < corners).all(-1).double().mean(0)
    assert_mean_close((other[:, None] < corners).all(-1).double(), below, z_max=6)


def test_quasi_samples_go_on_and_follow_the_generator(setting):
    prior, problem = setting

    def draws(seed):
        sampler = quasi_samples(prior, problem, generator=torch.Generator().manual_seed(seed))
        return [sampler(64, None)[0] for _ in range(2)]

    first, second = draws(1)
    assert torch.equal(torch.stack(draws(1)), torch.stack([first, second]))
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(first, draws(2)[0]).any()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-30, 1.0])
def test_the_ends_of_the_cube_are_finite(monkeypatch, u):
    """Coordinates of zero or one would be sent to infinity; torch can draw both."""
    prior = GaussianMixture.gaussian(torch.zeros(1).double(), torch.ones(1, 1).double())
    sampler = quasi_samples(prior, LinearProblem(torch.ones(1, 1).double(), 1.0))
    ends = torch.full((4, 3), u, dtype=torch.float64)
    monkeypatch.setattr("invbayes.training.samplers.SobolEngine.draw", lambda *_, **__: ends)
    assert all(torch.isfinite(part).all() for part in sampler(4, None))


def test_dtype_follows_the_prior():
    prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
    problem = LinearProblem(torch.ones(1, 1), 1.0)
    for sampler in (fresh_samples(prior, problem), quasi_samples(prior, problem)):
        assert {part.dtype for part in sampler(4, None)} == {torch.float32}


def test_a_data_set_stays_in_pairs(generator):
    x = torch.arange(20.0)[:, None].expand(-1, 2)
    sampler = fixed_samples(x, 3 * x)
    batch_x, batch_z = sampler(8, generator)
    assert torch.equal(batch_z, 3 * batch_x)
    assert len(batch_x[:, 0].unique()) == 8
    assert not torch.equal(sampler(8, generator)[0], batch_x)
    assert torch.equal(sampler(20, generator)[0], x)
    assert torch.equal(sampler(1000, generator)[1], 3 * x)


def test_a_data_set_follows_the_generator():
    x = torch.arange(20.0)[:, None]
    sampler = fixed_samples(x, x)
    draws = [sampler(8, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("x", "z", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), "x and z must both have shape"),
        (torch.ones(3), torch.ones(3), "x and z must both have shape"),
        (torch.ones(0, 2), torch.ones(0, 2), "with n > 0"),
        (torch.full((3, 2), torch.nan), torch.ones(3, 2), "x must be finite"),
        (torch.ones(3, 2), torch.full((3, 2), torch.inf), "z must be finite"),
        (torch.ones(3, 2), torch.ones(3, 2).double(), "z must have dtype torch.float32"),
    ],
)
def test_a_bad_data_set_is_named(x, z, message):
    with pytest.raises(ValueError, match=message):
        fixed_samples(x, z)


@pytest.mark.parametrize("make", [fresh_samples, quasi_samples])
def test_a_prior_that_does_not_fit_is_named(make):
    prior = GaussianMixture.gaussian(torch.zeros(1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="prior must have dimension 2, got 1"):
        make(prior, LinearProblem(torch.eye(2), 1.0))


def test_own_samples_with_new_noise_at_every_step(generator):
    """x stays in the data; z = A*(A x + η) with the noise of the problem, independent of x."""
    problem = LinearProblem(torch.tensor([[2.0, 0.0], [1.0, 1.0]]).double(), 0.3)
    data = torch.arange(40.0, dtype=torch.float64).reshape(20, 2)
    sampler = fresh_noise(data, problem)
    x, z = zip(*[sampler(8, generator) for _ in range(500)], strict=True)
    x, z = torch.cat(x), torch.cat(z)
    assert {tuple(row) for row in x.tolist()} == {tuple(row) for row in data.tolist()}
    assert all(len(batch[:, 0].unique()) == 8 for batch in x.split(8))
    noise = torch.linalg.solve(problem.matrix.mT, (z - problem.mean_normal_data(x)).mT).mT
    assert_mean_close(noise, torch.zeros(2).double())
    square = noise[:, :, None] * noise[:, None, :]
    assert_mean_close(square.flatten(1), (0.09 * torch.eye(2).double()).flatten())
    whole = sampler(100, generator)
    assert torch.equal(whole[0], data)
    assert not torch.equal(whole[1], sampler(100, generator)[1])


def test_jitter_blurs_the_samples(generator):
    problem = LinearProblem(torch.eye(2).double(), 0.1)
    data = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    sampler = fresh_noise(data, problem, jitter=0.5)
    draws = [sampler(1, generator) for _ in range(4000)]
    x, z = (torch.cat(parts) for parts in zip(*draws, strict=True))
    assert_mean_close(x, data[0])
    assert_mean_close((x - data).square(), torch.full((2,), 0.25).double())
    assert_mean_close((z - x).square(), torch.full((2,), 0.01).double())  # z belongs to the new x


def test_pictures_and_a_generator_that_is_followed():
    problem = LinearProblem(lambda x: x.mean((1, 2)), 0.1, shape=(2, 3, 3))
    data = torch.rand(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    draw = fresh_noise(data, problem, jitter=0.1)
    one, same, other = (draw(4, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one[0].shape == one[1].shape == (4, 2, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_samplers_hold_copies_and_can_be_pickled(setting):
    prior, problem = setting
    x = prior.sample(8, generator=torch.Generator().manual_seed(0))
    for sampler in (
        fresh_samples(prior, problem),
        fresh_noise(x, problem),
        fixed_samples(x, x),
        quasi_samples(prior, problem, generator=torch.Generator().manual_seed(1)),
    ):
        again = pickle.loads(pickle.dumps(sampler))
        seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
        for a, b in zip(sampler(4, seeds[0]), again(4, seeds[1]), strict=True):
            assert torch.equal(a, b)
    before = fixed_samples(x, x)
    drawn = before(100, None)[0]
    drawn.zero_()
    x.zero_()
    assert (before(100, None)[0] != 0).all()


def test_a_sequence_goes_on_where_it_was(setting):
    prior, problem = setting
    sampler = quasi_samples(prior, problem, generator=torch.Generator().manual_seed(1))
    sampler(16, None)
    state = sampler.state_dict()
    expected = sampler(16, None)
    other = quasi_samples(prior, problem, generator=torch.Generator().manual_seed(2))
    other.load_state_dict(state)
    for a, b in zip(other(16, None), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(3, 3), {}, r"x must have shape \(\*, 2\), got \(3, 3\)"),
        (torch.zeros(2), {}, r"x must have shape \(n, 2\) with n > 0, got \(2,\)"),
        (torch.zeros(0, 2), {}, r"with n > 0"),
        (torch.full((3, 2), torch.nan), {}, "x must be finite"),
        (torch.zeros(3, 2).double(), {}, "x must have dtype torch.float32"),
        (torch.zeros(3, 2), {"jitter": -0.1}, "jitter must be finite and >= 0"),
        (None, {}, "x must be a floating-point tensor, got NoneType"),
    ],
)
def test_bad_samples_of_ones_own_are_named(x, options, message):
    with pytest.raises(ValueError, match=message):
        fresh_noise(x, LinearProblem(torch.eye(2), 1.0), **options)


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_a_bad_number_of_samples_is_named(setting, n):
    prior, problem = setting
    x = prior.sample(8)
    for sampler in (
        fresh_samples(prior, problem),
        fresh_noise(x, problem),
        fixed_samples(x, x),
        quasi_samples(prior, problem),
    ):
        with pytest.raises(ValueError, match="n must be a positive int, got"):
            sampler(n, None)


def test_no_data_set_is_named():
    with pytest.raises(ValueError, match="x must be a floating-point tensor, got NoneType"):
        fixed_samples(None, torch.zeros(2, 2))


def crops_of(pictures, shape, n, generator, noise=1e-6):
    problem = LinearProblem(torch.clone, noise, shape=shape, dtype=torch.float64)
    return random_crops(pictures, problem)(n, generator)


def test_every_place_of_every_picture_is_as_likely(generator):
    """A picture of numbers tells where a cut-out of one pixel came from."""
    pictures = [
        torch.arange(6.0).double().reshape(1, 2, 3),
        torch.arange(6.0, 10).double().reshape(1, 1, 4),
    ]
    x, _ = crops_of(pictures, (1, 1, 1), 20_000, generator)
    counts = torch.bincount(x.flatten().round().long(), minlength=10).double()
    assert ((counts - 2000) ** 2 / 2000).sum() < 28  # chi-squared with nine degrees, p = 0.001


@pytest.mark.parametrize(("shape", "turns"), [((2, 3, 3), 8), ((2, 2, 3), 4)])
def test_a_cut_out_is_mirrored_and_a_square_one_transposed(shape, turns, generator):
    picture = torch.rand(*shape, generator=generator, dtype=torch.float64)
    x, z = crops_of([picture], shape, 4000, generator)
    kinds, counts = x.unique(dim=0, return_counts=True)
    assert len(kinds) == turns
    expected = 4000 / turns
    assert ((counts - expected) ** 2 / expected).sum() < 25
    sets = [picture, picture.flip(1), picture.flip(2), picture.flip(1, 2)]
    sets += [p.mT for p in sets] if turns == 8 else []
    for kind in kinds:
        assert any(torch.equal(kind, p) for p in sets)
    assert 0 < (z - x).abs().max() < 1e-4


def test_the_cut_outs_data_are_those_of_the_problem(generator):
    problem = LinearProblem(lambda x: 3 * x, 0.5, shape=(1, 4, 5), dtype=torch.float64)
    picture = torch.zeros(1, 9, 9, dtype=torch.float64)
    x, z = random_crops([picture], problem)(2000, generator)
    assert x.shape == z.shape == (2000, 1, 4, 5)
    assert (x == 0).all()
    assert z.std().item() == pytest.approx(1.5, rel=0.03)
    picture += 1.0  # the sampler has its own copy
    assert (random_crops([picture], problem)(1, generator)[0] == 1).all()


def test_a_generator_fixes_the_cut_outs():
    """Pictures, places, turns and noise, whatever PyTorch's own generator is at."""
    pictures = [torch.full((1, 5, 5), k).double() for k in range(4)]
    one, two = (
        crops_of(pictures, (1, 3, 3), 50, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert len(one[0].unique()) == 4
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize(
    ("pictures", "shape", "message"),
    [
        ([], (1, 2, 2), "pictures must name at least one"),
        ([torch.zeros(1, 2, 9).double()], (1, 3, 3), "at least as large as a cut-out"),
        ([torch.zeros(2, 9, 9).double()], (1, 3, 3), "pictures must have shape"),
        ([torch.zeros(1, 1, 9, 9).double()], (1, 3, 3), "pictures must have three axes"),
        ([torch.zeros(1, 9, 9)], (1, 3, 3), "pictures must have dtype"),
        ([torch.zeros(1, 9, 9).double()], (9,), "problem must be one of pictures"),
    ],
)
def test_pictures_that_do_not_fit_are_named(pictures, shape, message):
    with pytest.raises(ValueError, match=message):
        crops_of(pictures, shape, 2, None)
