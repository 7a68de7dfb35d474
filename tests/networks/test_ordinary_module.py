"""The network is an ordinary module: transformations, compilation, threads, processes, files."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from invbayes import (
    Divergence,
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    NotConverged,
    Reconstruction,
    TiedModes,
    TrainingDiverged,
    fresh_samples,
    train,
)

PRIOR = GaussianMixture.gaussian(torch.zeros(2).double(), torch.eye(2).double())
PROBLEM = LinearProblem(torch.eye(2).double(), 0.3)


def make(blocks=2, seed=3, lipschitz=0.9, **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"hidden": (8, 8), "generator": generator, **options}
    return InvertibleResNet.dense(2, blocks=blocks, lipschitz=lipschitz, **options).double()


@pytest.fixture
def net():
    return make()


@pytest.fixture
def x(generator):
    return torch.randn(5, 2, generator=generator, dtype=torch.float64)


def test_vmap_of_every_derivative(net, x):
    torch.testing.assert_close(vmap(net)(x), net(x))
    torch.testing.assert_close(vmap(jacrev(net))(x), net.jacobian(x))
    torch.testing.assert_close(vmap(jacfwd(net))(x), net.jacobian(x))
    torch.testing.assert_close(vmap(net.divergence)(x), net.divergence(x))
    torch.testing.assert_close(vmap(net.log_abs_det)(x), net.log_abs_det(x))
    torch.testing.assert_close(vmap(net.jacobian)(x), net.jacobian(x))
    gradient = vmap(grad(net.log_abs_det))(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net.log_abs_det(leaf).sum(), leaf)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("method", ["newton", "anderson", "plain"])
def test_derivatives_of_the_inverse(net, x, method):
    z = net(x).detach()
    inverse = torch.linalg.inv(net.jacobian(x)).detach()

    def undo(z):
        return net.inverse(z, 1e-12, method=method)

    direction = torch.ones_like(z)
    torch.testing.assert_close(
        jvp(undo, (z,), (direction,))[1], inverse.sum(2), rtol=1e-7, atol=1e-8
    )
    torch.testing.assert_close(
        grad(lambda z: undo(z).sum())(z), inverse.sum(1), rtol=1e-7, atol=1e-8
    )
    if method == "newton":
        for transform in (jacrev, jacfwd):
            rows = transform(undo)(z)
            rows = rows.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            torch.testing.assert_close(rows, inverse, rtol=1e-8, atol=1e-9)
    for second in (
        lambda: hessian(lambda z: undo(z).sum())(z[:1]),
        lambda: jacfwd(jacfwd(undo))(z[:1]),
        lambda: grad(lambda z: grad(lambda z: undo(z).sum())(z).sum())(z[:1]),
    ):
        with pytest.raises((NotImplementedError, RuntimeError)):
            second()


def test_gradients_for_each_sample_and_ensembles(net, x):
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(parameters, p):
        return functional_call(net, parameters, (p,)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(len(x)):
        net.zero_grad()
        net(x[i]).square().sum().backward()
        for name, value in net.named_parameters():
            torch.testing.assert_close(each[name][i], value.grad)
    nets = [make(seed=seed) for seed in range(3)]
    stacked, buffers = stack_module_state(nets)
    values = vmap(lambda p: functional_call(nets[0], (p, buffers), (x,)))(stacked)
    torch.testing.assert_close(values, torch.stack([net(x) for net in nets]))


def test_compilation_without_a_graph_break_and_export(net, x):
    expected = net(x)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    derivative = torch.compile(net.with_divergence, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(derivative(x)[1], net.divergence(x))
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), expected)


def test_copies_pickles_and_files(net, x, tmp_path):
    torch.save(net, tmp_path / "net.pt")
    again = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(tmp_path / "net.pt", weights_only=False),
    ]
    for other in again:
        assert torch.equal(other(x), net(x))
        assert all(a is not b for a, b in zip(other.parameters(), net.parameters(), strict=True))


def trained(seed, objective):
    net = make(seed=seed, blocks=1)
    generator = torch.Generator().manual_seed(seed)
    options = {"steps": 25, "batch": 32, "generator": generator, "progress": False}
    train(net, objective, fresh_samples(PRIOR, PROBLEM), **options)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_two_trainings_in_two_threads_are_those_in_one():
    objectives = [Reconstruction(), Divergence(PROBLEM), Reconstruction()]
    alone = [trained(seed, objective) for seed, objective in enumerate(objectives)]
    with ThreadPoolExecutor(3) as pool:
        together = [*pool.map(trained, range(3), objectives)]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_reads_in_one_thread_while_another_inverts(x):
    """No cache is shared: a weight that changes is seen at once."""
    first, second = make(seed=1), make(seed=2)
    z = second(x).detach()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: [second.inverse(z, 1e-10) for _ in range(30)])
        layer, stale = first.blocks[0].layers[0], 0
        while not running.done():
            with torch.no_grad():
                layer.raw.mul_(-1)
                before = layer.weight.clone()
                layer.raw.mul_(-1)
                stale += int(not torch.equal(layer.weight, -before))
        running.result()
    assert stale == 0


def fail(error):
    raise error


@pytest.fixture(scope="module")
def pool():
    """One process: its start, with all imports, takes seconds."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(
    "error",
    [
        NotConverged("lost", steps=3, bound=0.5, point=torch.ones(2)),
        TiedModes("two", index=torch.tensor([1])),
        TrainingDiverged("away", step=7),
    ],
)
def test_errors_cross_from_a_worker_process(error, pool):
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__.keys() == error.__dict__.keys()
    with pytest.raises(type(error), match=str(error)):
        pool.submit(fail, error).result(timeout=120)


def test_autocast_does_not_reach_inside(net, x):
    net, x = make(blocks=2, lipschitz=0.5).float(), x.float()
    plain = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(x), plain)
        assert net.jacobian(x).dtype == torch.float32
        assert torch.equal(net.log_abs_det(x), net.log_abs_det(x).float())
        found = net.inverse(plain, 1e-4)
        value = torch.nn.functional.linear(x, torch.eye(2))
    assert value.dtype == torch.bfloat16  # autocast was on
    assert (found - x).norm(dim=1).max() <= 1.1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(net, x, dtype):
    net, x = make().to(dtype), x.to(dtype)
    for call in (net, net.inverse, net.jacobian, lambda _: net.lipschitz_bound()):
        with pytest.raises(ValueError, match="must be in single or double precision, got"):
            call(x)


def test_nothing_is_asked_of_the_values_in_a_forward_pass(net):
    x = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert torch.isfinite(net(x)).all(1).tolist() == [False, True]
    with pytest.raises(ValueError, match="z must be finite"):
        net.inverse(x)


def test_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    make()
    trained(0, Divergence(PROBLEM))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_inference_mode(net, x):
    with torch.inference_mode():
        found = net.inverse(net(x), 1e-9)
        estimate = net.estimate_log_abs_det(x, terms=60)
    assert (found - x).norm(dim=1).max() <= 1e-9
    assert estimate.value.shape == (5,)


def test_the_repr_tells_bound_and_scale():
    assert "lipschitz=0.9, scale=1.5" in repr(make(scale=1.5))
