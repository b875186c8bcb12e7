"""A gate for quality: what the demo's evidence makes of a small drawn set, whole and broken."""

from dataclasses import replace
from functools import cache

import pytest

from pgnn_geo.app.config import LabelConfig
from pgnn_geo.app.demo import EVIDENCE
from pgnn_geo.app.labelling import label_images
from pgnn_geo.datasets import Shapes
from pgnn_geo.features import FrozenFeatureConfig, frozen_features
from pgnn_geo.labels.frozen import fit_evidence
from pgnn_geo.labels.propagation import complete, from_prototypes
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn.backbones import build_backbone

#: mIoU that the labels must have, not refined; 0.523 was measured.
GATE = 0.505

BROKEN = (
    {"power": 1.0},
    {"threshold": 0.0},
    {"threshold": 0.9},
    {"background": 0.1},
    {"background": 0.4},
    {"whitening": None},
    {"evidence_window": 1},
    {"step": "alone"},
    {"step": "evidence"},
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Photos, their features, and a model by the demo's settings with changes, fitted once."""
    folder = tmp_path_factory.mktemp("gate")
    photos = Shapes(folder / "shapes", "train", num_images=(160, 1), with_masks=True)
    config = FrozenFeatureConfig(size=192, stride=8, output_stride=8, precision="32-true")
    bank = frozen_features(build_backbone("vgg_tiny", "TEXTURES"), photos, folder, config)

    @cache
    def model(**changes):
        return fit_evidence(bank, photos.tags, replace(EVIDENCE, **changes))

    return photos, bank, model


def miou(drawn, background=0.2, step="prototypes", **changes):
    """Of labels by the demo's settings with changes; "alone" are prototypes without propagation."""
    photos, bank, fitted = drawn
    model = fitted(**changes)
    if step == "alone":
        start = TaggedMaps.empty(photos.tags, bank.shape[-1])
        maps = complete(model.seen(bank), start, [from_prototypes(model.prototypes)])
    else:
        maps = model.maps(bank, photos.tags, step)
    matrix = ConfusionMatrix(len(photos.classes), photos.classes)
    rows = list(maps.maps.split(photos.tags.bool().sum(dim=1).tolist()))
    for index, mask in enumerate(label_images(photos, rows, LabelConfig(background))):
        matrix.update(mask, photos.read_mask(index))
    return matrix.compute().miou


def test_labels_are_as_good_as_measured_and_with_a_changed_step_below_the_gate(drawn):
    # One test: of several in two processes, each would make the features.
    assert GATE < miou(drawn) < GATE + 0.04
    found = {str(broken): miou(drawn, **broken) for broken in BROKEN}
    assert not {broken: value for broken, value in found.items() if value >= GATE}
