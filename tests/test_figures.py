"""Pictures: the arrays behind them, and a slider whose every part is there."""

from __future__ import annotations

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from ipywidgets import FloatSlider

from invbayes.figures import draw_arrows, draw_density, draw_net, frame, lattice, live, slider

mpl.use("Agg")


@pytest.fixture
def ax():
    with plt.style.context("invbayes.book"):
        figure, axes = plt.subplots()
        yield axes
        plt.close(figure)


def test_lattice_runs_along_rows():
    points = lattice((0, 2, 10, 11), rows=2, columns=3)
    assert points[0].tolist() == [[0, 10], [1, 10], [2, 10]]
    assert points[:, 0].tolist() == [[0, 10], [0, 11]]


def test_a_net_joins_neighbours_in_both_directions(ax):
    nodes = lattice((0, 2, 0, 1), rows=2, columns=3)
    draw_net(ax, nodes)
    lines = sorted(line.get_xydata().tolist() for line in ax.lines)
    rows, columns = nodes.tolist(), nodes.transpose(0, 1).tolist()
    assert lines == sorted(rows + columns)


def test_a_torn_net_leaves_out_what_is_too_long(ax):
    nodes = lattice((0, 2, 0, 1), rows=2, columns=3)
    nodes[:, 2, 0] += 1  # the right column, torn off
    draw_net(ax, nodes, longest=1.5)
    lines = sorted(line.get_xydata().tolist() for line in ax.lines)
    rows = [part.tolist() for row in nodes for part in (row[:2], row[2:])]
    assert lines == sorted(rows + nodes.transpose(0, 1).tolist())


def test_arrows_have_their_true_length(ax):
    start, displacement = torch.zeros(1, 2), torch.tensor([[0.3, 0.4]])
    draw_arrows(ax, start, displacement)
    arrows = ax.collections[0]
    assert (arrows.U.item(), arrows.V.item()) == pytest.approx((0.3, 0.4))
    assert (arrows.scale, arrows.scale_units, arrows.angles) == (1, "xy", "xy")


def test_a_density_is_drawn_where_it_is(ax):
    centre = torch.tensor([1.0, -2.0], dtype=torch.float64)
    draw_density(ax, lambda x: -(x - centre).square().sum(-1), (-3, 3, -4, 4))
    rings = [path.vertices for path in ax.collections[0].get_paths() if len(path.vertices)]
    middle = (rings[-1].max(0) + rings[-1].min(0)) / 2
    assert middle.tolist() == pytest.approx(centre.tolist(), abs=0.02)
    filled, lines = ax.collections
    assert lines.levels.tolist() == filled.levels[::3].tolist()  # a line for every third shade


def test_a_slider_has_a_picture_a_text_and_a_name_for_each_value():
    values = [0.1, 0.5, 1.0]
    html = slider(
        lambda _: plt.figure(), values, label="δ", alt=lambda v: f"at <{v}>", start=1
    ).data
    assert re.findall(r'alt="at &lt;([\d.]+)&gt;"( hidden=hidden)?>', html) == [
        ("0.1", " hidden=hidden"),
        ("0.5", ""),
        ("1.0", " hidden=hidden"),
    ]
    assert 'data-values="0.1,0.5,1"' in html
    (handle,) = re.findall("<input[^>]*>", html)
    assert 'max="2" value="1"' in handle
    assert 'aria-valuetext="0.5"' in handle
    assert html.count("data:image/png;base64,") == 3
    assert not plt.get_fignums()


def test_the_slider_starts_where_asked_and_its_label_is_text():
    html = slider(lambda _: plt.figure(), [0.1, 0.5], label="<δ>", alt=str, start=1).data
    assert re.search(r"&lt;δ&gt; = <output[^>]*>0.5</output>", html)
    assert 'oninput="' in html


def test_the_pictures_of_a_slider_are_photographs_if_so_named():
    """The stylesheet inverts pictures in the dark theme, but not those of the class photo."""
    for photo in (False, True):
        html = slider(lambda _: plt.figure(), [1, 2], label="n", alt=str, photo=photo).data
        assert html.count(" class=photo") == 2 * photo


def test_in_jupyterlab_the_arrow_keys_are_the_sliders_and_the_hint_is_for_the_untrusted():
    """Lab asks the element with the focus; it strips attributes without a value if in doubt."""
    html = slider(lambda _: plt.figure(), [0.1, 0.5], label="δ", alt=str).data
    (handle,) = re.findall("<input[^>]*>", html)
    assert 'data-lm-suppress-shortcuts="true"' in handle
    assert '<p hidden="">Run this cell' in html


def test_an_unnormalised_density_is_drawn(ax):
    draw_density(ax, lambda x: 1000 - x.square().sum(-1), (-3, 3, -3, 3))
    assert ax.collections[0].get_array().max() <= 1
    assert len(ax.collections[0].get_paths()[-1].vertices)


def test_a_frame_is_the_box_in_equal_units(ax):
    frame(ax, (0, 2, 3, 7), xlabel="a", ylabel="b", title="c")
    assert (*ax.get_xlim(), *ax.get_ylim()) == (0, 2, 3, 7)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("a", "b", "c")
    assert ax.get_aspect() == 1


def test_what_is_drawn_may_carry_a_gradient(ax):
    scale = torch.ones(1, requires_grad=True)
    draw_density(ax, lambda x: -scale * x.square().sum(-1), (-3, 3, -3, 3))
    draw_net(ax, scale * lattice((0, 1, 0, 1), 2, 2))
    draw_arrows(ax, scale * torch.zeros(3, 2), scale * torch.ones(3, 2))
    assert len(ax.lines) == 4


def test_the_callers_style_wins(ax):
    draw_density(ax, lambda x: -x.square().sum(-1), (-3, 3, -3, 3), alpha=0.1)
    draw_net(ax, lattice((0, 1, 0, 1), 2, 2), color="red")
    assert ax.collections[0].get_alpha() == 0.1
    assert ax.lines[0].get_color() == "red"


def test_a_live_picture_follows_its_control():
    def draw(value):
        figure, axes = plt.subplots(figsize=(1, 1))
        axes.plot([0, value])
        axes.set_ylim(0, 2)
        return figure

    control = FloatSlider(value=0.0, max=2.0)
    with plt.style.context("invbayes.book"):
        picture = live(draw, control).children[1]
        before = bytes(picture.value)
        control.value = 2.0
        assert before.startswith(b"\x89PNG")
        assert bytes(picture.value) != before
        control.value = 0.0  # laid out as at first
        assert bytes(picture.value) == before
    assert not plt.get_fignums()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"start must be a position in values \(there are 0\)"):
        slider(lambda _: plt.figure(), [], label="δ", alt=str)
    with pytest.raises(ValueError, match="start must be a position in values"):
        slider(lambda _: plt.figure(), [1.0], label="δ", alt=str, start=1)
    with pytest.raises(ValueError, match="rows must be a positive int"):
        lattice((0, 1, 0, 1), rows=0, columns=2)
    with pytest.raises(ValueError, match="columns must be a positive int"):
        lattice((0, 1, 0, 1), rows=2, columns=0)
