import csv

import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.labels.review import Reviewed, label_confidence, write_review


def test_the_share_of_sure_among_possible_places() -> None:
    maps = torch.tensor([[[0.9, 0.81], [0.79, 0.29]], [[0.2, 0.7], [0.31, 0.0]], [[0.0] * 2] * 2])
    # With a background of 0.6: above 0.8 there is no doubt, up to 0.3 it is nowhere.
    expected = torch.tensor([2 / 3, 0.0, 0.0])
    torch.testing.assert_close(label_confidence(maps, 0.6), expected)
    both = label_confidence(torch.stack([maps, maps.flip(0)]), 0.6)
    torch.testing.assert_close(both, torch.stack([expected, expected.flip(0)]))


def test_a_background_that_depends_on_the_place() -> None:
    maps = torch.tensor([[[0.9, 0.6, 0.4]]])
    # b = 0.1, 0.4, 0.6: 0.9 is above 0.55; 0.6 and 0.4 are below 0.7 and 0.8, above 0.2 and 0.3.
    torch.testing.assert_close(label_confidence(maps, None, power=1.0), torch.tensor([1 / 3]))
    with pytest.raises(InputError, match="background"):
        label_confidence(maps, 1.5)


def test_the_least_sure_is_first(tmp_path) -> None:
    rows = [
        Reviewed("trip/b", "traffic light", 0.9, 0.1),
        Reviewed("größe, 1", "cat", 0.25, 0.1),
        Reviewed("a", "cat", 0.25, 0.5),
    ]
    write_review(tmp_path / "review.csv", rows)
    with open(tmp_path / "review.csv", encoding="utf-8", newline="") as handle:
        found = list(csv.DictReader(handle))
    assert [(row["image"], row["class"]) for row in found] == [
        ("a", "cat"),
        ("größe, 1", "cat"),
        ("trip/b", "traffic light"),
    ]
    assert (found[0]["confidence"], found[0]["area"]) == ("0.250", "0.500")
