import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.labels.seeds import background_score, seed_labels


def test_hand_made_case():
    attention = torch.tensor([[[0.1, 0.9], [0.3, 0.3]], [[0.15, 0.2], [0.6, 0.3]]])
    assert seed_labels(attention, background=0.25).tolist() == [[0, 1], [2, 1]]
    assert seed_labels(attention, classes=torch.tensor([3, 7])).tolist() == [[0, 3], [7, 3]]


def test_power_rule():
    attention = torch.tensor([[[0.4]], [[0.7]]])
    torch.testing.assert_close(background_score(attention, power=2.0), torch.tensor([[[0.09]]]))
    assert seed_labels(attention, power=0.1).item() == 0  # 0.3 ** 0.1 = 0.89 beats 0.7


def test_size_of_the_photo():
    label = seed_labels(torch.eye(2)[None], size=(5, 7))
    assert label.shape == (5, 7) and label.dtype == torch.uint8
    assert label[0, 0] == 1 and label[0, -1] == 0


@pytest.mark.parametrize("options", [{"background": 0.0}, {"background": None}, {"power": -1.0}])
def test_bad_rules(options):
    with pytest.raises(InputError):
        seed_labels(torch.rand(1, 2, 2), **options)
