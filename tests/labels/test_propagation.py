import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pgnn_geo.features import FeatureBank
from pgnn_geo.graph import complete_edge_index
from pgnn_geo.labels.propagation import (
    CHUNK,
    complete,
    fit_prototypes,
    from_prototypes,
    mean_features,
    photo_graphs,
    propagate,
    within,
)
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import ClassPrototypes, CongenericPropagation


def random_set(folder, photos=9, channels=6, side=4, classes=2):
    """Features and maps of photos that have most of the classes."""
    torch.manual_seed(4)
    features = torch.randn(photos, channels, side, side).half().float()
    bank = FeatureBank.build(folder / "set.npy", lambda first: [features[first:]], photos, {})
    tags = torch.rand(photos, classes) < 0.7
    tags[0] = True
    maps = TaggedMaps.empty(tags, side)
    return bank, maps.with_maps(torch.rand_like(maps.maps)), features


def test_within_is_message_passing_on_every_photos_edges(tmp_path):
    bank, start, features = random_set(tmp_path)
    layer = CongenericPropagation(mean=features.mean(dim=(0, 2, 3)), power=2.0)
    result = complete(bank, start, [within(layer)])
    edges = complete_edge_index(torch.tensor([0, 16]))
    for row, owner in enumerate(start.owners.tolist()):
        nodes = features[owner].flatten(1).t()
        expected = layer(start.maps[row].view(-1, 1), nodes, edges).view(4, 4)
        torch.testing.assert_close(result.maps[row], expected / expected.max())


def test_prototypes_are_those_of_the_maps(tmp_path):
    bank, start, features = random_set(tmp_path)
    mean = mean_features(bank).mean(dim=0)
    torch.testing.assert_close(mean, features.mean(dim=(0, 2, 3)))
    prototypes = ClassPrototypes(2, 6, mean=mean)
    prototypes.update(features, start.dense(torch.arange(9)), start.tags.float())
    found = fit_prototypes(bank, start, mean)
    torch.testing.assert_close(found.prototypes(), prototypes.prototypes())
    result = complete(bank, start, [from_prototypes(found)])
    expected = prototypes.score(features)[start.tags]
    torch.testing.assert_close(result.maps, start.with_maps(expected).maps)


def test_steps_in_one_pass_are_steps_in_several(tmp_path):
    bank, start, features = random_set(tmp_path)
    steps = [
        from_prototypes(fit_prototypes(bank, start, features.mean(dim=(0, 2, 3)))),
        within(CongenericPropagation(mean=features.mean(dim=(0, 2, 3)), power=2.0)),
    ]
    once = complete(bank, start, steps)
    twice = complete(bank, complete(bank, start, steps[:1]), steps[1:])
    torch.testing.assert_close(once.maps, twice.maps)
    assert (once.maps - start.maps).abs().max() > 0.1


@pytest.mark.parametrize("side", [6, 5])
def test_nodes_may_be_cells_of_a_grid(tmp_path, side):
    bank, start, features = random_set(tmp_path, side=side)
    layer = CongenericPropagation(mean=features.mean(dim=(0, 2, 3)))
    result = complete(bank, start, [within(layer)], grid=3).maps
    pad = (0, side % 3 and 1, 0, side % 3 and 1)
    row, owner = 2, int(start.owners[2])
    cells = F.avg_pool2d(F.pad(features[owner][None], pad, mode="replicate"), 2)[0]
    values = F.avg_pool2d(F.pad(start.maps[row][None, None], pad, mode="replicate"), 2)
    group = torch.zeros(9, dtype=torch.long)
    out = layer(values.view(9, 1), cells.flatten(1).t(), batch=group).view(3, 3)
    expected = out.repeat_interleave(2, 0).repeat_interleave(2, 1)[:side, :side]
    torch.testing.assert_close(result[row], expected / expected.max())


def test_single_positions_are_nodes_without_a_copy(tmp_path):
    bank, start, _ = random_set(tmp_path)
    graphs = next(photo_graphs(bank, start.tags))
    assert graphs.x.shape == (CHUNK * 16, 6) and graphs.x.data_ptr() == graphs.batch.x.data_ptr()
    assert graphs.x.is_contiguous()
    assert torch.equal(graphs.maps(graphs.nodes(bank[graphs.photos])), bank[graphs.photos])
    assert torch.equal(graphs.tags[16], start.tags[1])
    peaks = graphs.normalized(graphs.x.abs()).view(CHUNK, 16, 6).amax(dim=1)
    torch.testing.assert_close(peaks, torch.ones(CHUNK, 6))


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_memory_does_not_grow_with_photos(tmp_path):
    sizes = set()
    for photos in (12, 24):
        folder = tmp_path / str(photos)
        folder.mkdir()
        bank, start, features = random_set(folder, photos, 64, 8)
        layer = CongenericPropagation(mean=features.mean(dim=(0, 2, 3)), power=2.0)
        with LargestTensor() as largest:
            complete(bank, start, [within(layer)])
        sizes.add(largest.numel)
    assert sizes == {CHUNK * 64 * 8 * 8}


def test_kinds_of_propagation(tmp_path):
    bank, start, features = random_set(tmp_path)
    mean = features.mean(dim=(0, 2, 3))
    assert propagate("none", bank, start) is start
    first = [from_prototypes(fit_prototypes(bank, start, mean))]
    second = [within(CongenericPropagation(mean=mean, power=3.0))]
    for kind, steps in {"prototypes": first, "within": second, "both": first + second}.items():
        expected = complete(bank, start, steps).maps
        torch.testing.assert_close(propagate(kind, bank, start, power=3.0).maps, expected)
