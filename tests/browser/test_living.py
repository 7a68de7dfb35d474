"""Living figures: the page's numbers against PyTorch's, and the reader's hand on them."""

import base64
import json
import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from invbayes import (
    GaussianMixture,
    InvertibleResNet,
    LinearProblem,
    fixed_point,
    has_single_mode,
    ideal_forward_map,
    map_estimate,
    posterior,
    posterior_mean,
)

from .conftest import DESKTOP, open_page
from .gestures import drag, swipe

PAGES = {
    "posterior": "book/02_point_estimators.html",
    "squeeze": "book/03_iresnets.html",
    "error_bars": "book/08_error_bars.html",
}
PHONE = {"width": 390, "height": 844}
COMPUTE = """([name, data, states]) => states.map(state => {
    const { belief, net, ...numbers } = Living.figures[name].compute(data, state);
    return numbers;
})"""

START_WITH = """data => {
    const box = document.querySelector('.living').cloneNode(true);
    box.querySelector('script').textContent = JSON.stringify(data);
    Living.start(box);
    return box.querySelector('.living-check.failed')?.textContent ?? 'not noticed';
}"""
MIDDLE = "stage => stage.scrollIntoView({ block: 'center', behavior: 'instant' })"


double = partial(torch.tensor, dtype=torch.float64)


def close(here, there, within=1e-8):
    here, there = (torch.as_tensor(value, dtype=torch.float64) for value in (here, there))
    return (here - there).abs().max() < within


def places(box, n=100, seed=0):
    left, right, bottom, top = box
    generator = torch.Generator().manual_seed(seed)
    corner, size = double([left, bottom]), double([right - left, top - bottom])
    return corner + size * torch.rand(n, 2, generator=generator).double()


def mixture(numbers):
    return GaussianMixture(**{key: double(v) for key, v in numbers.items()})


def denoising(noise):
    return LinearProblem(torch.eye(2, dtype=torch.float64), noise_std=noise)


def decoded(text, like):
    values = torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f8").copy())
    return values.reshape(like.shape)


@torch.no_grad()
def network(numbers):
    """The network that the page's own numbers describe, by PyTorch."""
    net = InvertibleResNet.dense(2, lipschitz=numbers["lipschitz"], scale=numbers["scale"]).double()
    net.log_scale.fill_(np.log(numbers["scale"]))
    (block,) = net.blocks
    for layer, weight, bias in zip(
        block.layers, numbers["weights"], numbers["biases"], strict=True
    ):
        layer.raw.copy_(decoded(weight, layer.raw))
        layer.bias.copy_(decoded(bias, layer.bias))
    for activation, sharp in zip(block.activations, numbers["sharpnesses"], strict=True):
        activation.log_sharpness.copy_(decoded(sharp, activation.log_sharpness).log())
    return net.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module", params=PAGES, ids=PAGES.values())
def living(request, book, browser):
    """A page with a living figure, opened once, and what the figure is told in the file."""
    opened = open_page(book, browser, PAGES[request.param], formulas=False)
    text = (book / opened.name).read_text(encoding="utf-8")
    found = re.findall(r'data-figure="(\w+)".*?json">(.*?)</script>', text, re.DOTALL)
    ((opened.figure, numbers),) = found
    assert opened.figure == request.param
    opened.data = json.loads(numbers)
    yield opened
    opened.context.close()


def only(*figures):
    names = [PAGES[figure] for figure in figures]
    return pytest.mark.parametrize("living", figures, ids=names, indirect=True)


def computed(living, states):
    return living.page.evaluate(COMPUTE, [living.figure, living.data, states])


@only("posterior")
def test_posterior_is_pytorchs(living):
    left, right, bottom, top = living.data["box"]
    corners = double([[x, y] for x in (left, right) for y in (bottom, top)])
    # In the corners, with little noise, one blob's share is zero to rounding.
    points = torch.cat([places(living.data["box"]), corners.repeat_interleave(4, 0)])
    noises = np.linspace(0.1, 1.2, 100).tolist() + [0.1, 0.15, 0.2, 0.25] * 4
    states = [{"point": p.tolist(), "noise": s} for p, s in zip(points, noises, strict=True)]
    prior = mixture(living.data["prior"])
    rivals = 0
    for y, noise, here in zip(points, noises, computed(living, states), strict=True):
        belief = posterior(prior, denoising(noise), y)
        assert close(here["mean"], belief.mean)
        assert close(here["covariance"], belief.covariance)
        assert close(here["highest"], map_estimate(prior, denoising(noise), y))
        assert bool(here["rivals"]) != has_single_mode(belief).item()
        for other in here["rivals"] + here["passes"]:
            x = double(other["x"])
            assert close(belief.score(x), [0.0, 0.0])
            assert close(other["logDensity"], belief.log_prob(x))
            assert other["logDensity"] < here["height"]
            steepest = torch.linalg.eigvalsh(belief.hessian(x)).max()
            assert (steepest < 0) == (other in here["rivals"])
        rivals += len(here["rivals"])
    assert rivals > 20


@only("error_bars")
@torch.no_grad()
def test_the_page_inverts_as_the_package_does(living):
    """The same answer, by as many evaluations of the network, with a bound that holds."""
    numbers = living.data
    points, net = places(numbers["box"]), network(numbers["net"])
    prior, problem = mixture(numbers["prior"]), denoising(numbers["noise"])
    block, lipschitz, shortened = net.blocks[0].prepared(), net.lipschitz, 0
    states = [{"point": p.tolist()} for p in points]
    for z, here in zip(points, computed(living, states), strict=True):
        calls = []

        def residual(x, calls=calls):
            calls.append(x)
            value, jacobian = block.with_jacobian(x)
            return lipschitz * value, lipschitz * jacobian

        options = {"lipschitz": lipschitz, "tol": 1e-9, "with_jacobian": residual}
        found = fixed_point(lambda x: lipschitz * block(x), z / net.scale, **options)
        trials = {"start": 1, "Newton": 1, "a quarter of Newton's": 2, "plain": 3}
        assert sum(trials[by] for by in here["by"]) == len(calls)
        assert close(here["answer"], found)
        path = double(here["path"])
        value = lipschitz * block(path)
        rounding = 2.0**-52 * sum(part.norm(dim=-1) for part in (path, value, z / net.scale))
        bounds = (z / net.scale + value - path).norm(dim=1) + rounding
        told = double(here["bounds"]) * (1 - lipschitz)
        assert ((told - bounds).abs() <= 4 * rounding).all()
        assert (told >= 0.99 * rounding).all()
        assert (double(here["errors"]) <= double(here["bounds"])).all()
        belief, slope = posterior(prior, problem, z), torch.linalg.inv(net.jacobian(found))
        assert close(here["covariance"], numbers["noise"] ** 2 * (slope + slope.mT) / 2)
        assert close(here["mean"], belief.mean)
        assert close(here["exact"], belief.covariance)
        shortened += len(here["by"]) - 1 - here["by"].count("Newton")
    assert shortened  # the safeguard was needed


@only("squeeze")
def test_stretching_is_pytorchs(living):
    numbers = living.data
    prior, problem = mixture(numbers["prior"]), denoising(numbers["noise"])
    nets = [(network(each["net"]), each["asked"]) for each in numbers["nets"]]
    points = places(numbers["box"])
    states = [{"point": p.tolist(), "chosen": i % len(nets)} for i, p in enumerate(points)]
    mirrored = 0
    for state, here in zip(states, computed(living, states), strict=True):
        net, asked = nets[state["chosen"]]
        x, jacobian = double(state["point"]), double(here["askedJacobian"])
        assert close(here["image"], net(x))
        assert close(here["jacobian"], net.jacobian(x))
        assert close(here["stretch"], torch.linalg.svdvals(net.jacobian(x)))
        bounds = [net.scale * (1 + net.lipschitz), net.scale * (1 - net.lipschitz)]
        assert close(here["allowed"], bounds)
        if asked == "ideal":
            slope = torch.autograd.functional.jacobian(
                lambda x: ideal_forward_map(prior, problem, x), x
            )
            assert close(here["asked"], ideal_forward_map(prior, problem, x))
            assert close(here["askedJacobian"], slope)
        else:  # the page undoes the posterior mean: its slopes are 1/4 at least
            z = double(here["asked"])
            slope = torch.autograd.functional.jacobian(
                lambda z: posterior_mean(prior, problem, z), z
            )
            assert close(posterior_mean(prior, problem, z), x, within=1e-9)
            assert close(jacobian @ slope, torch.eye(2))
        assert close(here["askedStretch"], torch.linalg.svdvals(jacobian))
        mirrored += here["mirrored"]
    assert 0 < mirrored < 20


@only("squeeze", "error_bars")
def test_the_bound_of_the_pages_networks_is_a_bound(living):
    """‖W‖ ≤ 1 for every weight in the page: without it no L is a Lipschitz constant."""
    nets = [each["net"] for each in living.data.get("nets", [living.data])]
    for numbers in nets:
        for text, shape in zip(numbers["weights"], [(32, 2), (32, 32), (2, 32)], strict=True):
            assert torch.linalg.matrix_norm(decoded(text, torch.empty(shape)), 2) <= 1


def test_the_page_notices_a_wrong_number(living):
    """In the last digits of one mean of the prior, or of one weight of a network."""
    page = living.page
    assert "checked itself" in page.locator(".living-check:not(.failed)").inner_text()
    broken = json.loads(json.dumps(living.data))
    if living.figure == "posterior":
        broken["prior"]["means"][0][0] += 1e-6
    else:
        net = broken["nets"][2]["net"] if living.figure == "squeeze" else broken["net"]
        weight = decoded(net["weights"][1], torch.empty(32, 32))
        weight[1, 8] += 1e-6
        net["weights"][1] = base64.b64encode(weight.numpy().tobytes()).decode()
    assert "Do not trust" in page.evaluate(START_WITH, broken)


def coordinates(page):
    """Where the figure says that its point is, as the sliders' texts and as its first line."""
    told = page.locator(".living input").evaluate_all(
        "inputs => inputs.slice(0, 2).map(input => input.getAttribute('aria-valuetext'))"
    )
    first = page.locator(".living li").first.inner_text()
    assert f"({', '.join(told)})" in first
    return [float(text.replace("−", "-")) for text in told]


def grip(page):
    box = page.locator(".living .grip").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_mouse_finger_and_key_move_the_point(living, size):
    page = living.page
    page.set_viewport_size(size)
    page.locator(".living .stage").first.evaluate(
        "e => e.scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    start, (x, y) = coordinates(page), grip(page)
    unit = page.locator(".living .frame").first.bounding_box()["width"] / 400

    page.keyboard.press("Control+A")  # what is selected must not be dragged in place of the point
    drag(page.mouse, (x, y), (x + 60 * unit, y))
    dragged = coordinates(page)
    assert dragged[0] > start[0] + 0.5
    assert abs(dragged[1] - start[1]) < 0.03
    swipe(living, grip(page), (x, y + 60 * unit))
    swiped = coordinates(page)
    assert abs(swiped[0] - start[0]) < 0.1
    assert swiped[1] < start[1] - 0.4
    page.touchscreen.tap(x, y)
    assert all(abs(a - b) < 0.1 for a, b in zip(coordinates(page), start, strict=True))
    for axis, (key, sign) in enumerate([("ArrowRight", 1), ("ArrowLeft", -1)]):
        before = coordinates(page)
        page.locator(".living input").nth(axis).press(key)
        moved = [a - b for a, b in zip(coordinates(page), before, strict=True)]
        assert 0 < sign * moved[axis] < 0.08  # from the nearest step of 0.05
        assert moved[1 - axis] == 0
    assert living.complaints == []


@only("posterior")
def test_the_noise_can_be_chosen(living):
    words = living.page.locator(".living ul")
    for key, expected in [("End", "rival: a peak"), ("Home", "no rival")]:
        living.page.locator(".living input").nth(2).press(key)
        assert expected in words.inner_text()


@only("squeeze")
def test_all_that_the_words_speak_of_is_drawn(living):
    """On the left x, on the right its image and what was asked, below how much both stretch."""
    living.page.locator(".living input").first.press("Home")
    left, right, strip = living.page.locator(".living svg.stage").evaluate_all(
        """stages => stages.map(stage =>
            [...stage.querySelectorAll("[class]")].map(drawn => drawn.getAttribute("class")))"""
    )
    one = Counter(["one", "one thick", "spot disc one thick"])
    two = Counter(["two dashed", "two thick", "spot disc two thick"])
    ends = Counter(["spot diamond two hollow", "spot disc one"])
    assert one + Counter(["spot cross ink"]) <= Counter(left)
    assert one + two + ends <= Counter(right)
    assert Counter(["wide faint"]) + ends + ends <= Counter(strip)


@only("squeeze")
def test_the_network_can_be_chosen(living):
    living.page.locator(".living input").first.press("Home")
    for network, allowed in enumerate(living.data["nets"]):
        living.page.locator(".living select").select_option(index=network)
        net = allowed["net"]
        most = f"{net['scale'] * (1 + net['lipschitz']):.2f}"
        assert f"to {most}" in living.page.locator(".living ul").inner_text()
