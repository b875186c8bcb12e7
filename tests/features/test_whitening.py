import numpy as np
import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.whitening import WhitenedFeatures, Whitening


@pytest.fixture
def bank(tmp_path):
    # Correlated, off centre, and on scales that differ by far.
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(20, 3, 4, 5)).transpose(0, 2, 3, 1) @ rng.normal(size=(3, 3))
    features = (mixed * [1, 10, 0.1] + [3, -5, 1]).transpose(0, 3, 1, 2)
    batches = torch.from_numpy(features).float().split(7)
    return FeatureBank.build(tmp_path / "features.npy", lambda first: batches, 20, {})


def rows(features):
    return features[torch.arange(20)].permute(1, 0, 2, 3).flatten(1)


def test_covariance_is_the_identity(bank):
    white = WhitenedFeatures(bank, Whitening.fit(bank, ridge=1e-9))
    assert white.shape == bank.shape and len(white) == 20
    y = rows(white)
    torch.testing.assert_close(y.mean(1), torch.zeros(3), atol=1e-3, rtol=0)
    covariance = torch.from_numpy(np.cov(y.double().numpy(), bias=True))
    torch.testing.assert_close(covariance, torch.eye(3).double(), atol=2e-3, rtol=0)


def test_ridge_keeps_what_is_weak_small(bank):
    ridge = 0.5
    x = rows(bank).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x, bias=True))
    wanted = vectors.T @ (x - x.mean(1, keepdims=True))
    wanted /= np.sqrt(values + ridge * values.mean())[:, None]
    found = rows(WhitenedFeatures(bank, Whitening.fit(bank, ridge))).double().numpy()
    sign = np.sign((wanted * found).sum(1, keepdims=True))  # an eigenvector has two
    np.testing.assert_allclose(found, sign * wanted, atol=2e-3)


def test_constant_features_are_no_direction(tmp_path):
    batches = torch.ones(2, 3, 2, 2).split(1)
    bank = FeatureBank.build(tmp_path / "features.npy", lambda first: batches, 2, {})
    with pytest.raises(InputError, match="all the same"):
        Whitening.fit(bank)


@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_ridge_must_be_positive(bank, ridge):
    with pytest.raises(InputError, match="ridge"):
        Whitening.fit(bank, ridge)


def test_its_state_is_all_of_it_and_it_begins_as_the_identity(bank):
    fitted, other, x = Whitening.fit(bank), Whitening(3), bank[torch.arange(5)]
    torch.testing.assert_close(other(x), x)
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(x), fitted(x)) and not torch.equal(fitted(x), x)
    assert repr(other) == "Whitening(3)"
