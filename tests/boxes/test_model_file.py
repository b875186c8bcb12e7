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
    save_detector(tmp_path / "detector.pt", detector, ("cat", "dog"), LEDGER)
    model, classes, ledger = load_detector(tmp_path / "detector.pt")
    assert classes == ("cat", "dog") and ledger == LEDGER and not model.training
    images, boxes = torch.rand(1, 3, 64, 64), [torch.tensor([[0.0, 0.0, 30.0, 40.0]])]
    assert torch.equal(model(images, boxes).scores, detector(images, boxes).scores)
    assert model.config == detector.config and model.backbone.frozen_stages == 1


def test_an_adjuster_comes_back_as_it_was(adjuster, tmp_path):
    adjuster.lin_offset.weight.data.normal_()
    save_adjuster(tmp_path / "adjuster.pt", adjuster, LEDGER)
    model, ledger = load_adjuster(tmp_path / "adjuster.pt")
    images, boxes = torch.rand(1, 3, 64, 64), [torch.tensor([[0.0, 0.0, 30.0, 40.0]])]
    assert ledger == LEDGER and torch.equal(model(images, boxes), adjuster(images, boxes))


def test_other_files_are_refused(detector, adjuster, tmp_path):
    path = tmp_path / "model.pt"
    save_detector(path, detector, ("cat", "dog"), LEDGER)
    with pytest.raises(InputError, match="is not a box adjuster"):
        load_adjuster(path)
    save_adjuster(path, adjuster, LEDGER)
    with pytest.raises(InputError, match="is not a detector"):
        load_detector(path)
    path.write_bytes(b"torn")
    with pytest.raises(InputError, match="not a readable model file"):
        load_detector(path)
    with pytest.raises(InputError, match="There is no model file"):
        load_adjuster(tmp_path / "none.pt")
    save_detector(path, detector, ("cat", "dog"), LEDGER)
    content = torch.load(path, weights_only=True)
    for broken in ({"config": {}}, {"state_dict": {}}, {"classes": None}):
        torch.save({**content, **broken}, path)
        with pytest.raises(InputError, match="does not fit this version"):
            load_detector(path)
