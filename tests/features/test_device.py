"""Features in the memory of a device are those of the bank."""

from pathlib import Path

import pytest
import torch

from pgnn_geo.features import FeatureBank, ResidentFeatures, resident
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.frozen import fit_evidence


@pytest.fixture
def bank(tmp_path: Path) -> FeatureBank:
    values = torch.randn(70, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    return FeatureBank.build(tmp_path / "bank.npy", lambda first: [values[first:]], 70, {})


def test_the_same_values(bank: FeatureBank) -> None:
    held = ResidentFeatures(bank, "cpu")
    assert held.shape == bank.shape and len(held) == len(bank)
    photos = torch.tensor([69, 0, 33, 33])
    assert held[photos].dtype == torch.float32 and torch.equal(held[photos], bank[photos])
    assert torch.equal(held[torch.arange(70)], bank[torch.arange(70)])


def test_the_same_is_learned(bank: FeatureBank) -> None:
    tags = torch.rand(70, 3, generator=torch.Generator().manual_seed(1)) < 0.4
    config = EvidenceConfig(iterations=5, positions=500, objectness=True)
    one, other = (
        fit_evidence(each, tags, config).state_dict()
        for each in (bank, ResidentFeatures(bank, "cpu"))
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_gpu_holds_what_fits_half_of_it(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * 70 * 8 * 4 * 4
    monkeypatch.setattr("pgnn_geo.features.device.ResidentFeatures", lambda bank, device: device)
    for free, wanted in ((2 * size, "cuda:1"), (2 * size - 2, bank)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**12))
        assert resident(bank, "cuda:1") is wanted
    assert resident(bank, "cpu") is bank
