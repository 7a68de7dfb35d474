"""The curves on the front page are what its caption says."""

import torch

from book.fold import PRIOR, PROBLEM, maps
from invbayes import map_estimate


def test_the_divergence_levels_the_fold_where_map_jumps_and_the_log_determinant_rises():
    line = torch.linspace(-2.4, 2.4, 801, dtype=torch.float64)
    plain, folded, level, rising = maps(line).values()
    step = line[1] - line[0]
    assert torch.equal(plain, line)
    assert (folded.diff()[line[:-1].abs() < 0.2] < 0).all()
    assert (folded.diff()[(line[:-1].abs() - 1).abs() < 0.2] > 2 * step).all()  # at the peaks
    assert (level.diff() >= 0).all()
    flat = line[(level - level[400]).abs() < 1e-9]
    either_side = torch.tensor([[-1e-9], [1e-9]], dtype=torch.float64)
    ends = map_estimate(PRIOR, PROBLEM, either_side)[:, 0]
    assert ((torch.stack([flat[0], flat[-1]]) - ends).abs() < 2 * step).all()
    assert torch.equal(level[line.abs() > ends[1] + step], folded[line.abs() > ends[1] + step])
    assert (rising.diff() > 0.3 * step).all()
