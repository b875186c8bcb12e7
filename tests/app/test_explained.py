"""The sample of a page, unpacked and compared with the layers."""

from base64 import b64decode

import numpy as np
import torch

from pgnn_geo.app.explained import choose_sample, explain_propagation
from pgnn_geo.datasets import Shapes
from pgnn_geo.labels.propagation import Propagated, complete, within
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import ClassPrototypes, CongenericPropagation


def test_every_class_has_its_turn_and_partners_have_the_class():
    tags = torch.zeros(30, 4)
    tags[torch.arange(30), torch.arange(30) % 3] = 1  # the fourth class has no photo
    sample = choose_sample(tags, count=7, partners=2)
    assert sample.labels == [0, 1, 2, 0, 1, 2, 0]
    chosen = [[sample.photos[i] for i in group] for group in sample.groups]
    assert len({group[0] for group in chosen}) == 7
    for group, label in zip(chosen, sample.labels, strict=True):
        assert len(set(group)) == 3 and all(tags[i, label] for i in group)


def test_few_photos_are_all_explained_without_partners():
    sample = choose_sample(torch.eye(2), count=12)
    assert sample.photos == [0, 1] and sample.groups == [[0], [1]] and sample.labels == [0, 1]


def unpacked(text: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(b64decode(text), np.uint8).copy()).view(shape) / 255


def test_rows_are_what_the_edges_carried(shapes_root):
    torch.manual_seed(0)
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    side, tags = 4, photos.tags
    features = torch.randn(20, 12, side, side).relu()
    start = TaggedMaps.empty(tags, side)
    start = start.with_maps(torch.rand_like(start.maps))
    mean = features.mean(dim=(0, 2, 3))
    layer = CongenericPropagation(mean=mean, power=2.0)
    prototypes = ClassPrototypes(len(photos.classes), 12, mean=mean)
    prototypes.update(features, start.dense(torch.arange(20)), tags)
    source = Propagated(features, start, layer, None, "cpu")
    label = int(tags[0].argmax())
    partners = [i for i in range(1, 20) if tags[i, label]][:2]
    (entry,) = explain_propagation(source, [[0, *partners]], [label], photos, prototypes)
    assert entry["images"] == [photos.image_ids[i] for i in (0, *partners)]
    assert (entry["side"], entry["partnerSide"], entry["label"]) == (side, side, label + 1)
    # Plain arithmetic: Eq. 3 with rectified cosines, squared.
    unit = torch.nn.functional.normalize(features - mean[:, None, None], dim=1).flatten(2)
    evidence = start.dense(torch.tensor([0, *partners]))[:, label].flatten(1)
    cosine = torch.einsum("ct,pcs->pts", unit[0], unit[[0, *partners]]).relu() ** 2
    own = cosine[0] / cosine[0].sum(dim=1, keepdim=True) * evidence[0]
    total = cosine[1:].sum(dim=(0, 2))  # over the positions of all partners
    far = (cosine[1:] / total[:, None] * evidence[1:, None]).transpose(0, 1).flatten(1)
    for name, heat in (("own", own), ("partners", far)):
        expected = heat / heat.amax(dim=1, keepdim=True)
        found = unpacked(entry[name], *heat.shape)
        torch.testing.assert_close(found, expected, atol=0.5 / 255 + 1e-5, rtol=0)
    wanted = complete(features, start, [within(layer)]).dense(torch.tensor([0]))[0, label]
    level = unpacked(entry["evidence"], side, side)
    torch.testing.assert_close(level, wanted, atol=0.5 / 255 + 1e-5, rtol=0)
    scores = prototypes.score(features[0].flatten(1).t())
    found = unpacked(entry["prototypes"], side * side, len(photos.classes)) * 255
    torch.testing.assert_close(found, (scores * 100).round().clamp(max=255), atol=1.0, rtol=0)


def test_finer_maps_are_averaged(shapes_root):
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    start = TaggedMaps.empty(photos.tags, 32)
    source = Propagated(
        torch.rand(20, 4, 32, 32),
        start.with_maps(torch.rand_like(start.maps)),
        CongenericPropagation(),
        None,
        "cpu",
    )
    label = int(photos.tags[3].argmax())
    (entry,) = explain_propagation(source, [[3]], [label], photos)
    assert entry["side"] == 16 and "prototypes" not in entry and entry["partners"] == ""
    assert unpacked(entry["own"], 256, 256).amax(dim=1).eq(1).all()
