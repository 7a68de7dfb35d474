"""The defaults of the last part: a changed one changes what readers get."""

from __future__ import annotations

import inspect

import pytest
import torch

import invbayes

FLOW = {"rtol": 1e-10, "atol": 1e-12, "max_evaluations": 200_000}
NO_BEND = {"hessian_damping": 0.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AdaptiveInertia", {**NO_BEND, "curvature": 1.0}),
        ("DataMisfit", {}),
        (
            "DeepPrior",
            {
                "input_dim": 1,
                "decoder": None,
                "zero_start": False,
                "dtype": torch.float64,
                "generator": None,
            },
        ),
        ("Inertia", {**NO_BEND, "largest_eigenvalue": None}),
        ("amplification", NO_BEND),
        ("decay_rate", NO_BEND),
        ("fit_observation", {"until": None, "max_steps": 10_000, "progress": True}),
        ("gradient_flow", FLOW),
        ("inertial_flow", {**NO_BEND, **FLOW}),
        ("iterates", {}),
        ("largest_step", NO_BEND),
        ("linearised_gradient_flow", {}),
        ("linearised_inertia", NO_BEND),
        ("mode_roots", NO_BEND),
        ("optimal_damping", NO_BEND),
    ],
)
def test_defaults(name, expected):
    found = inspect.signature(getattr(invbayes, name)).parameters.values()
    assert {p.name: p.default for p in found if p.default is not p.empty} == expected
