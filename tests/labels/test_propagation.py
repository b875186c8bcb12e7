import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pgnn_geo.datasets import partner_groups
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.labels.propagation import CHUNK, TaggedMaps, propagate
from pgnn_geo.nn import ClassPrototypes, CongenericPropagation
from pgnn_geo.nn.decoder import activate

TAGS = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=torch.bool)


@pytest.fixture
def bank(tmp_path):
    torch.manual_seed(0)
    features = torch.randn(4, 6, 4, 4).half().float()
    return FeatureBank.build(tmp_path / "f.npy", [features], 4, {})


@pytest.fixture
def start():
    torch.manual_seed(1)
    owners, classes = TAGS.nonzero(as_tuple=True)
    maps = torch.rand(len(owners), 4, 4)
    return TaggedMaps(maps, owners, classes, TAGS).with_maps(maps)


def test_rows_and_dense_maps_agree(start):
    dense = start.dense(torch.tensor([1, 2]))
    assert torch.equal(dense[0], start.maps[1:3])
    assert torch.equal(dense[1, 1], start.maps[3]) and not dense[1, 0].any()


def test_row_of_any_photos_in_any_order():
    tags = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    owners, classes = tags.nonzero(as_tuple=True)
    rows = TaggedMaps(torch.zeros(7, 2, 2), owners, classes, tags)
    expected = torch.tensor([[4, 5, 6], [-1, -1, -1], [0, -1, 1], [-1, 2, 3]])
    assert torch.equal(rows.row(torch.tensor([3, 1, 0, 2])), expected)


def test_none_changes_nothing(bank, start):
    assert propagate("none", bank, start) is start


def test_prototypes_in_one_pass_by_hand(bank, start):
    features = bank[[0, 1, 2, 3]]
    prototypes = ClassPrototypes(2, 6)
    prototypes.update_mean(features)
    prototypes.update(features, start.dense(torch.arange(4)), TAGS.float())
    expected = start.with_maps(prototypes.score(features)[TAGS]).maps
    torch.testing.assert_close(propagate("prototypes", bank, start).maps, expected)


def test_within_is_propagation_among_one_photos_positions(bank, start):
    mean = bank[[0, 1, 2, 3]].mean(dim=(0, 2, 3))
    layer = CongenericPropagation("cosine", mean=mean)
    result = propagate("within", bank, start).maps
    for r, owner in enumerate(start.owners.tolist()):
        nodes = bank[owner].flatten(1).t()
        expected = layer(start.maps[r].view(-1, 1), nodes, batch=torch.zeros(16, dtype=torch.long))
        torch.testing.assert_close(result[r], start.with_maps(expected.view(1, 4, 4)).maps[0])


def test_a_partner_of_the_class_brings_its_evidence(bank, start):
    group = propagate("group", bank, start, partners=2)
    within = propagate("within", bank, start)
    changed = TaggedMaps(start.maps.clone(), start.owners, start.classes, start.tags)
    changed.maps[2] = 0  # photo 1, class 1; its only partner there is photo 2
    after = propagate("group", bank, changed, partners=2)
    assert (group.maps[0] - within.maps[0]).abs().max() > 1e-3
    torch.testing.assert_close(after.maps[[0, 1, 4]], group.maps[[0, 1, 4]])  # class 0: untouched
    assert (after.maps[3] - group.maps[3]).abs().max() > 1e-3


def test_both_is_one_after_the_other(bank, start):
    first = propagate("prototypes", bank, start)
    torch.testing.assert_close(
        propagate("both", bank, start, partners=2).maps,
        propagate("group", bank, first, partners=2).maps,
    )


@pytest.mark.parametrize("activation", ["relu", "softmax"])
@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_activated_rows_are_activated_dense_scores(start, activation, scale):
    torch.manual_seed(2)
    scores = (scale * torch.randn(4, 2, 4, 4)).double()
    rows = start.activated(scores[TAGS], activation).maps
    dense = activate(scores, activation, TAGS.float())[TAGS]
    expected = dense / dense.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-10)


def test_power_reaches_the_layer(bank, start):
    layer = CongenericPropagation("cosine", mean=bank[[0, 1, 2, 3]].mean(dim=(0, 2, 3)), power=3.0)
    result = propagate("within", bank, start, power=3.0).maps[0]
    nodes = bank[0].flatten(1).t()
    expected = layer(start.maps[0].view(-1, 1), nodes, batch=torch.zeros(16, dtype=torch.long))
    torch.testing.assert_close(result, start.with_maps(expected.view(1, 4, 4)).maps[0])
    assert (result - propagate("within", bank, start).maps[0]).abs().max() > 1e-3


def random_set(folder, photos, channels, side, classes=2):
    """Features and maps of photos that have most of the classes."""
    torch.manual_seed(4)
    features = torch.randn(photos, channels, side, side).half().float()
    bank = FeatureBank.build(folder / "set.npy", [features], photos, {})
    tags = torch.rand(photos, classes) < 0.7
    tags[0] = True
    owners, classes = tags.nonzero(as_tuple=True)
    maps = torch.rand(len(owners), side, side)
    return bank, TaggedMaps(maps, owners, classes, tags).with_maps(maps)


@pytest.mark.parametrize(("side", "power"), [(4, 1.0), (5, 2.0)])
def test_group_form_is_message_passing_on_all_edges(tmp_path, side, power):
    bank, start = random_set(tmp_path, 9, 6, side)
    partners = CHUNK + 1  # more than one chunk
    features = bank[list(range(9))]
    layer = CongenericPropagation("cosine", mean=features.mean(dim=(0, 2, 3)), power=power)
    groups = partner_groups(start.tags, partners=1, group_size=partners + 1, seed=3)
    expected = torch.empty_like(start.maps)
    for r, (group, name) in enumerate(zip(groups.indices, groups.classes, strict=True)):
        dense = start.dense(group)[:, name, None]
        sources, scores = [features[group[0]].flatten(1).t()], [dense[0].flatten()]
        for x, s in zip(features[group[1:]], dense[1:], strict=True):
            sources.append(F.avg_pool2d(x[None], 2, ceil_mode=True)[0].flatten(1).t())
            scores.append(F.avg_pool2d(s[None], 2, ceil_mode=True).flatten())
        source, target = torch.cat(sources), sources[0]
        pairs = torch.cartesian_prod(torch.arange(len(source)), torch.arange(len(target)))
        out = layer(torch.cat(scores)[:, None], (source, target), pairs.t().contiguous())
        expected[r] = out.view(side, side)
    result = propagate("group", bank, start, partners, power, seed=3).maps
    # Partners' features are kept in half precision.
    torch.testing.assert_close(result, start.with_maps(expected).maps, rtol=0, atol=1e-3)


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


def test_memory_does_not_grow_with_partners_or_photos(tmp_path):
    sizes = set()
    for photos, partners in [(12, CHUNK), (12, 11), (24, 23)]:
        folder = tmp_path / f"{photos}-{partners}"
        folder.mkdir()
        bank, start = random_set(folder, photos, 64, 8, classes=1)
        with LargestTensor() as largest:
            propagate("both", bank, start, partners)
        sizes.add(largest.numel)
    assert sizes == {CHUNK * 64 * 8 * 8}


def test_partners_features_lie_in_the_scratch_folder(bank, start, tmp_path):
    scratch = tmp_path / "scratch"
    with pytest.raises(FileNotFoundError):
        propagate("group", bank, start, partners=2, scratch_folder=scratch)
    scratch.mkdir()
    propagate("group", bank, start, partners=2, scratch_folder=scratch)
    assert not list(scratch.iterdir())
