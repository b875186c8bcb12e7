import numpy as np
import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.labels.absence import class_thresholds, doubtful, photo_scores
from pgnn_geo.nn import CongenericPropagation


def test_thresholds_are_quantiles_of_the_photos_with_the_tag():
    torch.manual_seed(0)
    scores, tags = torch.rand(30, 4), torch.rand(30, 4) < 0.4
    tags[:, 3] = False
    found = class_thresholds(scores, tags, 0.7)
    for k in range(3):
        expected = np.quantile(scores[tags[:, k], k].numpy(), 0.7)
        assert found[k].item() == pytest.approx(expected, abs=1e-6)
    assert found[3] == float("inf")  # nothing is known of how it looks
    doubt = doubtful(scores, tags, found)
    assert torch.equal(doubt, (scores > found) & ~tags) and doubt[:, :3].any()
    assert not doubt[:, 3].any()
    with pytest.raises(InputError, match=r"scores \(30, 4\), tags \(30, 3\)"):
        class_thresholds(scores, tags[:, :3], 0.7)


def test_a_photo_scores_by_its_likeliest_tenth_against_plain_arithmetic():
    torch.manual_seed(0)
    x, mean, weight = torch.randn(5, 6, 8, 8), 0.1 * torch.randn(6), torch.randn(4, 7)
    layer = CongenericPropagation(mean=mean, power=2.0)
    found = photo_scores(weight, layer, x).numpy()
    for photo in range(5):
        rows = (x[photo].flatten(1).t() - mean).double().numpy()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        logits = unit @ weight[:, :-1].double().numpy().T + weight[:, -1].double().numpy()
        share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        edges = np.maximum(unit @ unit.T, 0) ** 2
        passed = edges @ share[:, 1:] / edges.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[photo], np.sort(passed, 0)[-6:].mean(0), atol=1e-5)
