import json

import pytest
import torch

from pgnn_geo.boxes.adjuster import BoxAdjuster
from pgnn_geo.boxes.model_file import load_adjuster, load_detector, save_adjuster, save_detector
from pgnn_geo.boxes.weak_detector import WeakDetector
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger

LEDGER = SupervisionLedger(tags="csv (voc train)", boxes="auxiliary (instances)")


@pytest.fixture
def detector():
    options = {"num_classes": 2, "pool_size": 2, "hidden_channels": 8, "freeze_stages": 1}
    return WeakDetector("vgg_tiny", weights=None, output_stride=8, **options).eval()


@pytest.fixture
def adjuster():
    return BoxAdjuster("vgg_tiny", "max", 2, 8, None, 8, freeze_stages=1).eval()


def test_a_detector_comes_back_as_it_was(detector, tmp_path):
    save_detector(tmp_path / "detector", detector, ("cat", "dog"), LEDGER)
    model, classes, ledger = load_detector(tmp_path / "detector")
    assert classes == ("cat", "dog") and ledger == LEDGER and not model.training
    images, boxes = torch.rand(1, 3, 64, 64), [torch.tensor([[0.0, 0.0, 30.0, 40.0]])]
    assert torch.equal(model(images, boxes).scores, detector(images, boxes).scores)
    assert model.config == detector.config and model.backbone.frozen_stages == 1


def test_an_adjuster_comes_back_as_it_was(adjuster, tmp_path):
    adjuster.lin_offset.weight.data.normal_()
    save_adjuster(tmp_path / "adjuster", adjuster, LEDGER)
    model, ledger = load_adjuster(tmp_path / "adjuster")
    images, boxes = torch.rand(1, 3, 64, 64), [torch.tensor([[0.0, 0.0, 30.0, 40.0]])]
    assert ledger == LEDGER and torch.equal(model(images, boxes), adjuster(images, boxes))


def test_files_of_older_versions_are_read(detector, adjuster, tmp_path):
    path = tmp_path / "model.pt"
    content = {"format": "pgnn_geo weak detector 1", "config": detector.config}
    content |= {"ledger": LEDGER.to_dict(), "classes": ["cat", "dog"]}
    torch.save({**content, "state_dict": detector.state_dict()}, path)
    model, classes, ledger = load_detector(path)
    assert (classes, ledger) == (("cat", "dog"), LEDGER)
    for name, value in model.state_dict().items():
        assert torch.equal(value, detector.state_dict()[name])
    with pytest.raises(InputError, match="is not a box adjuster"):
        load_adjuster(path)
    content |= {"format": "pgnn_geo box adjuster 1", "config": adjuster.config}
    torch.save({**content, "state_dict": adjuster.state_dict()}, path)
    images, boxes = torch.rand(1, 3, 64, 64), [torch.tensor([[0.0, 0.0, 30.0, 40.0]])]
    assert torch.equal(load_adjuster(path).model(images, boxes), adjuster(images, boxes))


def test_other_models_are_refused(detector, adjuster, tmp_path):
    path = tmp_path / "model"
    save_detector(path, detector, ("cat", "dog"), LEDGER)
    with pytest.raises(InputError, match="is not a box adjuster"):
        load_adjuster(path)
    save_adjuster(path, adjuster, LEDGER)
    with pytest.raises(InputError, match="is not a weak detector"):
        load_detector(path)
    with pytest.raises(InputError, match="There is no model"):
        load_adjuster(tmp_path / "none")
    save_detector(path, detector, ("cat", "dog"), LEDGER)
    config = json.loads((path / "config.json").read_text())
    for broken in ({"network": {}}, {"supervision": {"magic": 1}}, {"classes": None}):
        (path / "config.json").write_text(json.dumps({**config, **broken}))
        with pytest.raises(InputError, match="does not fit this version"):
            load_detector(path)
