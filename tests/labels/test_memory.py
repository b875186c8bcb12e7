from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from labels.test_frozen import CHOSEN, quality, scenes

from pgnn_geo.errors import InputError
from pgnn_geo.labels.evidence_config import EvidenceConfig
from pgnn_geo.labels.frozen import EvidenceModel, fit_evidence
from pgnn_geo.labels.memory import LabelMemory, fill_memory, marks_of
from pgnn_geo.labels.propagation import mean_features
from pgnn_geo.labels.tagged_maps import TaggedMaps


def photos(count: int = 5, classes: int = 3, channels: int = 20, side: int = 4):
    """Random features, tags, maps and all nodes as the memory sees them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, side, side, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    tags = torch.rand(count, classes, generator=generator) < 0.5
    tags[torch.arange(count), torch.arange(count) % classes] = True
    start = TaggedMaps.empty(tags, side)
    maps = start.with_maps(torch.rand(start.maps.shape, generator=generator))
    nodes = x.flatten(2).transpose(1, 2)  # [M, V, C]
    unit = F.normalize(nodes - x.mean((0, 2, 3)), dim=2)
    return x, tags, maps, unit


def filled(x, maps, size=1000, **kwargs):
    memory = LabelMemory(maps.tags.size(1), x.size(1), size, power=5.0)
    fill_memory(memory, x, maps, mean_features(x), **kwargs)
    return memory


def test_positions_read_the_labels_of_other_photos():
    x, tags, maps, unit = photos()
    memory = filled(x, maps, foreground=0.6, background=0.4, balance=0.5)
    marks = marks_of(mean_features(x))
    dense = maps.dense(torch.arange(5)).flatten(2)  # [M, K, V]
    best, label = dense.max(dim=1)
    label = torch.where(best > 0.6, label + 1, torch.where(best < 0.4, 0, -1))
    count = torch.bincount(label[label >= 0], minlength=4)
    for photo in range(5):
        expected = torch.zeros(16, 4)
        for n in range(16):
            for other in range(5):
                for m in range(16):
                    if other != photo and (y := int(label[other, m])) >= 0:
                        near = (5.0 * unit[photo, n] @ unit[other, m]).exp()
                        expected[n, y] += near / count[y] ** 0.5
        expected = expected * F.pad(tags[photo], (1, 0), value=True)
        expected = expected / expected.sum(1, keepdim=True)
        found = memory.read(unit[photo], tags[photo], marks[photo])
        torch.testing.assert_close(found, expected[:, 1:], rtol=5e-3, atol=5e-3)
        echo = memory.read(unit[photo], tags[photo])
        assert (echo - found).abs().max() > 0.05
    assert repr(memory).startswith(f"LabelMemory(\n  nodes={int((label >= 0).sum())}, power=5")


def test_features_are_compared_in_the_principal_directions_of_the_nodes():
    x, _, maps, unit = photos()
    memory = LabelMemory(3, 20, 1000, power=5.0, directions=6)
    fill_memory(memory, x, maps, mean_features(x))
    dense = maps.dense(torch.arange(5)).flatten(2).amax(1)
    nodes = unit[(dense > 0.5) | (dense < 0.25)]
    _, _, right = torch.linalg.svd(nodes.double(), full_matrices=False)
    projector = (right[:6].t() @ right[:6]).float()
    torch.testing.assert_close(memory.basis @ memory.basis.t(), projector, atol=1e-4, rtol=0)
    near = F.normalize(nodes @ projector, dim=1)
    found = memory.nodes[: len(nodes)].float()
    torch.testing.assert_close(found @ found.t(), near @ near.t(), atol=5e-3, rtol=0)
    assert memory.nodes.shape == (1000, 6) and not memory.values[len(nodes) :].any()


def test_a_small_memory_keeps_what_is_rare():
    x, _, maps, _ = photos()
    whole, half = (filled(x, maps, size=size, balance=0.5) for size in (1000, 41))
    counts = [(memory.values > 0).sum(dim=0) for memory in (whole, half)]
    assert counts[0].sum() > 60 and (half.values > 0).any(dim=1).sum() <= 41
    assert counts[1][0] == min(counts[0][0], 20)
    most = counts[1][1:].max()
    assert torch.equal(counts[1][1:], counts[0][1:].clamp(max=most))
    # What is left stands for what is not.
    for memory in (whole, half):
        torch.testing.assert_close(memory.values.sum(dim=0), counts[0].sqrt())
    assert torch.equal(filled(x, maps, size=41, balance=0.5).nodes, half.nodes)


def test_as_many_nodes_are_drawn_from_every_photo():
    x, _, maps, _ = photos()
    memory = filled(x, replace(maps, maps=torch.ones_like(maps.maps)), positions=15)
    used = (memory.values > 0).any(dim=1)
    owner = torch.cdist(memory.marks[used], marks_of(mean_features(x))).argmin(dim=1)
    assert owner.bincount().tolist() == [3] * 5


def test_nothing_is_read_from_a_memory_of_the_own_photo_alone():
    x, tags, maps, unit = photos(count=1)
    memory = filled(x, maps)
    found = memory.read(unit[0], tags[0], marks_of(mean_features(x))[0])
    assert torch.equal(found, torch.zeros(16, 3))


def test_maps_that_are_nowhere_sure():
    x, _, maps, _ = photos()
    with pytest.raises(InputError, match="nowhere sure"):
        filled(x, replace(maps, maps=torch.full_like(maps.maps, 0.3)))


def test_in_a_model_it_takes_the_classifiers_place():
    x, tags, truth = scenes()
    plain, config = (EvidenceConfig(iterations=60, memory=memory, **CHOSEN) for memory in (0, 2000))
    without, model = fit_evidence(x, tags, plain), fit_evidence(x, tags, config)
    torch.testing.assert_close(model.classifier, without.classifier)  # what it is fitted after
    maps = model.maps(x, tags)
    assert quality(maps, truth) > 0.85
    assert (maps.maps - without.maps(x, tags).maps).abs().max() > 0.01
    assert quality(model.maps(x[20:], tags[20:]), truth[20:]) > 0.85  # known by their marks
    fresh = EvidenceModel(3, 24, config)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.maps(x, tags).maps, maps.maps)
    # What travels within photos is the memory's evidence as well.
    source = model.before_propagation(x[:4], tags[:4])
    unit = F.normalize(x[0].flatten(1).t() - model.propagation.mean, dim=1)
    read = model.memory.read(unit, tags[0], marks_of(mean_features(x))[0])[:, 0]
    torch.testing.assert_close(source.start.maps[0].flatten(), read / read.max())


def test_errors_of_a_photo_are_not_its_own_judge():
    """Labels that are wrong in one photo: others correct them, the photo itself does not."""
    torch.manual_seed(0)
    body, ground = torch.randn(2, 20)
    x = 0.1 * torch.randn(12, 20, 4, 4) + ground[:, None, None]
    x[:, :, :, :2] += (body - ground)[:, None, None]
    tags = torch.tensor([[True, False]]).expand(12, 2).clone()
    start = TaggedMaps.empty(tags, 4)
    right = torch.zeros(12, 4, 4)
    right[:, :, :2] = 1
    wrong = right.clone()
    wrong[0] = 1 - right[0]
    memory = filled(x, start.with_maps(wrong))
    flat = x.flatten(2).transpose(1, 2)
    unit = F.normalize(flat - x.mean((0, 2, 3)), dim=2)
    read = memory.read(unit[0], tags[0], marks_of(mean_features(x))[0])[:, 0]
    assert ((read > 0.5).view(4, 4) == right[0].bool()).all()


def test_a_wrong_size_is_named():
    with pytest.raises(InputError, match="memory=-1: want 0"):
        EvidenceConfig(memory=-1)
