"""A gate for quality: what the default flow makes of a small drawn set, whole and when broken."""

import pytest

from pgnn_geo.app.config import LabelConfig
from pgnn_geo.app.labelling import label_images
from pgnn_geo.datasets import Shapes
from pgnn_geo.features import FrozenFeatureConfig, frozen_features
from pgnn_geo.labels.frozen import EvidenceConfig, fit_evidence
from pgnn_geo.labels.propagation import complete
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn.backbones import build_backbone

#: mIoU that the labels must have; what is measured is 3 points more.
GATE = 0.60
#: What each of these changes makes of them is below the gate.
BROKEN = {
    "power": {"power": 1.0},
    "threshold of prototypes": {"threshold": 0.95},
    "one round of prototypes": {"prototype_rounds": 1},
    "foreground": {"foreground": 0.99},
    "background": {"background": 0.05},
    "penalty of the evidence": {"evidence_penalty": 1.0},
    "penalty of the classifier": {"penalty": 1.0},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    photos = Shapes(folder / "shapes", "train", num_images=(60, 1), with_masks=True)
    config = FrozenFeatureConfig(size=192, stride=8, output_stride=8, precision="32-true")
    return photos, frozen_features(build_backbone("vgg_tiny", "TEXTURES"), photos, folder, config)


def miou(drawn, background=0.4, **changes):
    photos, bank = drawn
    model = fit_evidence(bank, photos.tags, EvidenceConfig(positions=8192, **changes))
    rows = model.maps(bank, photos.tags).maps.split(photos.tags.bool().sum(dim=1).tolist())
    matrix = ConfusionMatrix(len(photos.classes), photos.classes)
    for index, mask in enumerate(label_images(photos, list(rows), LabelConfig(background))):
        matrix.update(mask, photos.read_mask(index))
    return matrix.compute().miou


def test_labels_are_as_good_as_measured(drawn):
    assert GATE < miou(drawn) < GATE + 0.06


@pytest.mark.parametrize("name", BROKEN)
def test_a_changed_value_falls_below_the_gate(drawn, name):
    assert miou(drawn, **BROKEN[name]) < GATE


def test_without_propagation_it_falls_below_the_gate(drawn, monkeypatch):
    def without(features, start, steps, *rest):  # the last step is left out
        return complete(features, start, steps[:-1] or steps, *rest)

    monkeypatch.setattr("pgnn_geo.labels.frozen.complete", without)
    assert miou(drawn) < GATE


def test_another_background_score_falls_below_the_gate(drawn):
    assert miou(drawn, background=0.8) < GATE
