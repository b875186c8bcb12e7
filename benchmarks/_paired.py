"""Mean difference of figures in pairs, such as those of the same seeds, and its interval."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev
from typing import NamedTuple

import torch
from torch.distributions import StudentT


class Difference(NamedTuple):
    """The mean over the pairs, and how far the ends of its 95 % interval are from it."""

    mean: float
    half: float | None  #: nothing is known of it from one pair
    pairs: int


def paired_difference(own: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    r"""Return the mean of the differences over what both have; nothing if they share nothing.

    With :math:`s` the standard deviation of :math:`n` differences the interval is
    :math:`\pm \, t_{n-1, 0.975} \, s / \sqrt{n}`, that of Student's paired test.

    Args:
        own (mapping): Figures by seed.
        other (mapping): What they are compared with, by seed.
    """
    shared = sorted(own.keys() & other.keys())
    if not shared:
        return None
    gaps = [own[seed] - other[seed] for seed in shared]
    half = t_quantile(len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
    return Difference(mean(gaps), half, len(gaps))


def t_quantile(degrees: int) -> float:
    """Return where 95 % of Student's distribution lie between minus that and that.

    Args:
        degrees (int): Degrees of freedom, 1 or more.
    """
    t = torch.linspace(0, 13, 130_001, dtype=torch.double)  # 12.7 with one degree
    density = StudentT(torch.tensor(degrees, dtype=torch.double)).log_prob(t).exp()
    area = torch.cumulative_trapezoid(density, t)
    return float(t[1 + torch.searchsorted(area, 0.475)])
