"""What a living figure is told, in the notebook."""

import base64
import json
import re

import numpy as np
import pytest
import torch

from invbayes import HalfAbs, InvertibleResNet, LipschitzDense
from invbayes.examples import two_blobs
from invbayes.living import living_figure


def told(**data):
    options = {"label": "a <point>", "start": {"point": [0, 0]}, "witness": []}
    return living_figure("posterior", **options, **data).data


def numbers(page):
    return json.loads(re.search(r'json">(.*)</script>', page)[1])


def test_numbers_are_written_out_in_full():
    prior = two_blobs()
    found = numbers(told(prior=prior, third=torch.tensor([1 / 3], dtype=torch.float64)))
    assert found["third"] == [1 / 3]
    assert found["prior"]["covariances"] == prior.covariances.tolist()
    assert found["start"] == {"point": [0, 0]}


def test_networks_are_written_as_normalised_weights():
    generator = torch.Generator().manual_seed(0)
    net = InvertibleResNet.dense(2, lipschitz=0.9, scale=2.0, generator=generator)
    with torch.no_grad():
        net.blocks[0].activations[1].log_sharpness.fill_(0.5)
    found = numbers(told(net=net))["net"]
    block = net.blocks[0]

    def same(text, values):
        return np.array_equal(np.frombuffer(base64.b64decode(text)), values.detach().flatten())

    assert (found["lipschitz"], found["scale"]) == (0.9, pytest.approx(2.0))
    assert all(map(same, found["weights"], block.weights()))
    assert all(map(same, found["biases"], [layer.bias for layer in block.layers]))
    assert same(found["sharpnesses"][1], torch.full((16,), 0.5).exp())
    assert len(told(net=net)) < 16_000


def test_text_cannot_end_the_script_or_the_attribute():
    page = told(text="</script><b>")
    assert page.count("</script>") == 1
    assert numbers(page)["text"] == "</script><b>"
    assert 'aria-label="a &lt;point&gt;"' in page


def test_what_the_page_cannot_compute_is_refused():
    with pytest.raises(ValueError, match="one dense block with half-linear"):
        told(net=InvertibleResNet.dense(2, blocks=2))
    with pytest.raises(ValueError, match="one dense block with half-linear"):
        told(net=InvertibleResNet(LipschitzDense(2, activation="half_abs")))
    with pytest.raises(ValueError, match="data must be an InvertibleResNet, got HalfAbs"):
        told(net=HalfAbs(2))
    with pytest.raises(ValueError, match="not JSON compliant"):
        told(value=float("nan"))
