"""A network in a file: the same map in another process, and refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from invbayes import Block, InvertibleResNet, LipschitzDense, load_network, save_network
from tests.own_blocks import Convolutions


def make(**options):
    generator = torch.Generator().manual_seed(1)
    options = {"hidden": (8, 8), "lipschitz": 0.9, "generator": generator, **options}
    return InvertibleResNet.dense(2, **options).double()


@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "tanh"}, {"blocks": 3}, {"learn_scale": False}, {"scale": 2.5}],
)
def test_the_same_map_comes_back(options, tmp_path, generator):
    net = make(**options)
    net.blocks[0].layers[0].bias.requires_grad_(False)
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    save_network(net, tmp_path / "net.pt")
    again = load_network(tmp_path / "net.pt")
    assert torch.equal(again(x), net(x))
    assert torch.equal(again.inverse(x), net.inverse(x))
    assert again.lipschitz == net.lipschitz
    flags = [[p.requires_grad for p in n.parameters()] for n in (net, again)]
    assert flags[0] == flags[1]
    assert {p.dtype for p in again.parameters()} == {torch.float64}


def test_in_another_process(tmp_path):
    net, path = make(), tmp_path / "net.pt"
    save_network(net, path)
    code = (
        f"import torch, invbayes; net = invbayes.load_network(r'{path}');"
        "print(net(torch.ones(1, 2).double()).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(net(torch.ones(1, 2).double()).tolist())


def test_own_blocks_are_named_when_they_are_read(tmp_path, generator):
    net = InvertibleResNet(Convolutions(channels=6, generator=generator))
    save_network(net, tmp_path / "net.pt")
    again = load_network(tmp_path / "net.pt", blocks=[Convolutions])
    x = torch.randn(2, 1, 5, 5, generator=generator)
    assert torch.equal(again(x), net(x))
    with pytest.raises(ValueError, match=r"blocks must hold the classes .*\['Convolutions'\]"):
        load_network(tmp_path / "net.pt")
    with pytest.raises(ValueError, match="blocks must hold classes, got an instance of Conv"):
        load_network(tmp_path / "net.pt", blocks=[Convolutions()])


def test_a_block_that_could_not_be_built_again_is_not_written(tmp_path):
    class Needy(Block):
        shape = (2,)

        def __init__(self, power):  # noqa: ARG002
            super().__init__()

        def lipschitz_bound(self):
            return 1.0

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match=r"options are their constructor's arguments.*Needy"):
        save_network(InvertibleResNet(Needy(1)), tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="holds something else"):
        load_network(path)
    path.write_bytes(b"no network")
    with pytest.raises(ValueError, match="path must name a file of save_network"):
        load_network(path)
    torch.save(make(), path)  # a pickle: code, not data
    with pytest.raises(ValueError, match="path must name a file of save_network"):
        load_network(path)
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "none.pt")
    save_network(make(), path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 2}, path)
    with pytest.raises(ValueError, match="version 1 or before, got 2: update invbayes"):
        load_network(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 0.8}, r"another network: {'lipschitz': 0\.9}, not {'lipschitz': 0\.8}"),
        ({"activation": "elu"}, "another block: .*half_linear.*, not .*elu"),
        ({"hidden": (8, 9)}, "another block"),
    ],
)
def test_parameters_do_not_load_into_another_map(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options).load_state_dict(make().state_dict())
    state = {k: v for k, v in make().state_dict().items() if "extra" not in k}
    net = make()
    with pytest.raises(RuntimeError, match="Missing key"):  # a state from before
        net.load_state_dict(state)


def test_a_block_given_twice_is_trained_in_both_places(tmp_path):
    block = LipschitzDense(2, (8,))
    block.layers[1].bias.requires_grad_(False)
    net = InvertibleResNet([block, block], lipschitz=0.9)
    save_network(net, tmp_path / "net.pt")
    again = load_network(tmp_path / "net.pt")
    assert torch.equal(again(torch.ones(3, 2)), net(torch.ones(3, 2)))
    for one in again.blocks:
        flags = {name: value.requires_grad for name, value in one.named_parameters()}
        assert flags == {name: value.requires_grad for name, value in block.named_parameters()}
