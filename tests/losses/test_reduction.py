import torch

from pgnn_geo.losses.reduction import divisor


def test_what_a_sum_is_divided_by():
    assert divisor(torch.tensor(7)) == 7
    assert divisor(torch.tensor(0)) == 1
    # Two processes with 0 and 1: the mean of their quotients is that of all.
    assert divisor(torch.tensor(0), lambda count: torch.tensor(0.5)) == 0.5
    assert divisor(torch.tensor(0), lambda count: torch.tensor(0.0)) > 0
