"""benchmarks/_paired.py: what every paired comparison is judged by."""

import pytest
import torch
from scripts import BENCHMARKS


@pytest.fixture(scope="module")
def paired():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import _paired

        yield _paired


# Any printed table of Student's distribution, two-sided 0.05.
@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.706), (2, 4.303), (7, 2.365), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_quantiles_are_those_of_the_printed_table(paired, degrees, t):
    assert paired.t_quantile(degrees) == pytest.approx(t, abs=6e-4)


def test_difference_by_hand(paired):
    own, other = {0: 5.0, 1: 7.0, 2: 6.0, 9: 100.0}, {2: 3.0, 1: 5.0, 0: 4.0, 8: -100.0}
    gap = paired.paired_difference(own, other)  # differences 1, 2, 3: deviation 1
    assert gap.pairs == 3 and gap.mean == pytest.approx(2.0)
    assert gap.half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    back = paired.paired_difference(other, own)
    assert back.mean == pytest.approx(-2.0) and back.half == pytest.approx(gap.half)


def test_one_pair_has_no_interval_and_none_no_difference(paired):
    assert paired.paired_difference({0: 5.0}, {0: 4.0, 1: 0.0}) == (1.0, None, 1)
    assert paired.paired_difference({0: 5.0}, {1: 4.0}) is None


def test_intervals_hold_the_true_difference_19_times_in_20(paired):
    chance = torch.Generator().manual_seed(0)
    common = 3 * torch.randn(1000, 8, generator=chance, dtype=torch.double)
    own, other = (
        common + torch.randn(1000, 8, generator=chance, dtype=torch.double) for _ in range(2)
    )
    held = 0
    for a, b in zip((own + 0.5).tolist(), other.tolist(), strict=True):
        gap = paired.paired_difference(dict(enumerate(a)), dict(enumerate(b)))
        held += abs(gap.mean - 0.5) <= gap.half
    assert 930 <= held <= 970
