from pathlib import Path

import pytest
import torch

from pgnn_geo.app import labelling
from pgnn_geo.datasets import Shapes
from pgnn_geo.io.checkpoint import save_attention_model
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn import PGNN
from pgnn_geo.precision import default_device


def test_labelling_takes_the_gpu_if_there_is_one(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    path, devices = tmp_path / "model", []
    save_attention_model(
        path, PGNN("vgg_tiny", 5, layers=0, weights=None), dataset.classes, SupervisionLedger()
    )

    class Seen(Exception):
        """Nothing can be computed on such a device."""

    def maps(model: PGNN, *rest: object) -> list[torch.Tensor]:
        devices.append(model.backbone.device.type)
        raise Seen

    monkeypatch.setattr(labelling, "attention_maps", maps)
    monkeypatch.setattr(labelling, "default_device", lambda: torch.device("meta"))
    with pytest.raises(Seen):
        labelling.label(path, dataset, tmp_path / "labels")
    assert devices == ["meta"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device().type == "cuda"
