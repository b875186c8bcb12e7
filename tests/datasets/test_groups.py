import copy
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from pgnn_geo.datasets import ClassGroupSampler, collate_groups, partner_groups
from pgnn_geo.errors import InputError, InputNote

laws = settings(deadline=None, max_examples=25)


@st.composite
def tag_tables(draw: st.DrawFn) -> Tensor:
    """Tags in which classes are rare, common or absent; every image has one."""
    images, classes = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    tags = (torch.rand(images, classes, generator=generator) < draw(st.floats(0, 0.6))).float()
    tags[torch.arange(images), torch.randint(classes, (images,), generator=generator)] = 1
    return tags


def quiet(*args: object, **options: object) -> ClassGroupSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ClassGroupSampler(*args, **options)


def assert_groups(tags: Tensor, indices: Tensor, classes: Tensor) -> None:
    for row, c in zip(indices.tolist(), classes.tolist(), strict=True):
        pool = set(tags[:, c].nonzero().flatten().tolist())
        assert set(row) <= pool  # all images of a group have its class
        assert len(set(row)) == min(len(row), len(pool))  # and repeat only where they must
        counts = [row[1:].count(i) for i in pool - {row[0]}]
        if counts:
            assert row.count(row[0]) == 1  # the anchor is no partner of its own
            assert max(counts) - min(counts) <= 1


@laws
@given(tag_tables(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99), st.integers(0, 9))
def test_every_image_is_an_anchor_once(
    tags: Tensor, size: int, per_batch: int, seed: int, epoch: int
) -> None:
    sampler = quiet(tags, size, per_batch, seed=seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(len(batch) == size * per_batch for batch in batches[:-1])
    flat = torch.tensor([i for batch in batches for i in batch]).view(-1, size)
    assert sorted(flat[:, 0].tolist()) == list(range(len(tags)))
    groups = sampler.groups(epoch)
    assert torch.equal(groups.indices, flat)
    assert_groups(tags, *groups)
    assert list(quiet(tags, size, per_batch, seed=seed)) == list(
        quiet(tags, size, per_batch, seed=seed)
    )


@laws
@given(tag_tables(), st.integers(1, 4), st.integers(1, 5), st.integers(2, 5), st.booleans())
def test_replicas_share_the_epoch(
    tags: Tensor, size: int, per_batch: int, replicas: int, drop_last: bool
) -> None:
    make = partial(quiet, tags, size, per_batch, num_replicas=replicas, drop_last=drop_last)
    if len(tags) < replicas * (per_batch if drop_last else 1):
        with pytest.raises(InputError, match="too few"):
            make(rank=0)
        return
    samplers = [make(rank=rank) for rank in range(replicas)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(b) for b in batches} == {len(sampler) for sampler in samplers}
    assert len({len(b) for b in batches}) == 1  # as many batches on every replica
    assert all(batch for b in batches for batch in b)
    anchors = [{i for batch in b for i in batch[::size]} for b in batches]
    assert sum(map(len, anchors)) == len(set().union(*anchors))  # no anchor on two replicas
    if drop_last:
        assert {len(batch) for b in batches for batch in b} == {size * per_batch}
    else:
        assert set().union(*anchors) == set(range(len(tags)))
    for sampler in samplers:
        assert_groups(tags, *sampler.groups())


def test_epochs_and_seeds_differ() -> None:
    tags = torch.ones(30, 2)
    draws = {}
    for seed in range(3):
        sampler = ClassGroupSampler(tags, seed=seed)
        for epoch in range(3):
            draws[seed, epoch] = str(sampler.groups(epoch).indices.tolist())
    assert len(set(draws.values())) == 9
    assert sampler.sampler is sampler  # where Lightning looks for set_epoch


def test_draws_are_uniform() -> None:
    tags = torch.zeros(6, 2)
    tags[:, 0] = 1
    tags[:4, 1] = 1
    sampler = ClassGroupSampler(tags, group_size=3)
    epochs = 3000
    groups = [sampler.groups(epoch) for epoch in range(epochs)]
    indices, classes = (torch.cat(x) for x in zip(*groups, strict=True))
    of_two = indices[:, 0] < 4
    assert abs(classes[of_two].float().mean() - 0.5) < 0.02
    assert (classes[~of_two] == 0).all()
    pairs = indices[(indices[:, 0] == 2) & (classes == 0), 1:]
    counts = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).view(6, 6)
    expected = len(pairs) / 20  # ordered pairs of the five others
    allowed = torch.ones(6, 6).fill_diagonal_(0)
    allowed[2] = allowed[:, 2] = 0
    assert (counts[allowed == 0] == 0).all()
    assert ((counts[allowed == 1] - expected).abs() < 5 * expected**0.5).all()


def test_a_small_class_repeats_and_warns_once() -> None:
    tags = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    with pytest.warns(InputNote, match="classes cat, dog have fewer than 3 images"):
        ClassGroupSampler(torch.eye(2), names=["cat", "dog"])
    with pytest.warns(InputNote, match=r"classes \[0, 1\] have fewer than 4") as caught:
        sampler = ClassGroupSampler(tags, group_size=4)
        list(sampler), list(sampler)
    assert len(caught) == 1  # class 2 has no image and is nobody's class
    rows = {row[0]: row for row in sampler.groups().indices.tolist()}
    assert rows == {0: [0, 1, 1, 1], 1: [1, 0, 0, 0], 2: [2, 2, 2, 2]}


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match=r"without tags, by index: 1 \(1 in all\)"):
        ClassGroupSampler(torch.tensor([[1.0], [0.0]]))
    for options in ({"group_size": 0}, {"groups_per_batch": 0}, {"rank": 2, "num_replicas": 2}):
        with pytest.raises(InputError, match="want group_size"):
            ClassGroupSampler(torch.ones(9, 1), **options)
    with pytest.raises(InputError, match=r"shape \[M, K\]"):
        ClassGroupSampler(torch.ones(9))
    with pytest.raises(InputError, match="1 or more"):
        partner_groups(torch.ones(9, 1), partners=0)


@laws
@given(tag_tables(), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**70), st.data())
def test_partners_do_not_depend_on_the_batch(
    tags: Tensor, partners: int, size: int, seed: int, data: st.DataObject
) -> None:
    indices, classes = partner_groups(tags, None, partners, size, seed)
    assert_groups(tags, indices, classes)
    assert indices.shape == (int(tags.sum()) * partners, size)
    some = data.draw(st.lists(st.integers(0, len(tags) - 1), min_size=1, max_size=8))
    part = partner_groups(tags, some, partners, size, seed)
    expected = torch.cat([(indices[:, 0] == i).nonzero().flatten() for i in some])
    assert torch.equal(part.indices, indices[expected])
    assert torch.equal(part.classes, classes[expected])
    # Over all groups of an image and class, partners repeat only when all have had their turn.
    for rows, c in zip(indices.view(-1, partners, size), classes[::partners], strict=True):
        others = int(tags[:, c].sum()) - 1
        used = rows[:, 1:].flatten().tolist()
        assert not others or len(set(used)) == min(others, len(used))


def test_partners_are_uniform_and_follow_the_seed() -> None:
    tags = torch.ones(8, 1)
    picks = torch.cat([partner_groups(tags, [3], 1, 2, seed).indices for seed in range(4000)])
    counts = torch.bincount(picks[:, 1], minlength=8)
    assert counts[3] == 0
    others = counts[torch.arange(8) != 3].double()
    assert ((others - 4000 / 7).abs() < 5 * (4000 / 7) ** 0.5).all()


class Items(Dataset[dict[str, object]]):
    def __getitem__(self, index: int) -> dict[str, object]:
        return {
            "image": tv_tensors.Image(torch.full((3, 4, 5), float(index))),
            "mask": tv_tensors.Mask(torch.zeros(4 + index % 2, 5, dtype=torch.uint8)),
            "tags": torch.ones(2),
            "image_id": f"id{index}",
            "index": index,
            "crop": torch.zeros(4),
            "flip": index % 2 == 0,
            "size": torch.tensor([4, 5]),
        }


def test_collate_through_a_loader() -> None:
    sampler = ClassGroupSampler(torch.ones(8, 2), group_size=2, groups_per_batch=3)
    collate = partial(collate_groups, group_size=2)
    batches = list(DataLoader(Items(), batch_sampler=sampler, collate_fn=collate))
    assert [len(batch["image_id"]) for batch in batches] == [6, 6, 4]
    groups = sampler.groups()
    assert torch.equal(torch.cat([b["index"] for b in batches]), groups.indices.flatten())
    batch = batches[0]
    assert batch["group"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["image"].shape == (6, 3, 4, 5) and batch["crop"].shape == (6, 4)
    assert batch["image_id"] == [f"id{i}" for i in batch["index"].tolist()]
    assert batch["flip"].dtype == torch.bool and batch["size"].shape == (6, 2)


def test_collate_masks_and_errors() -> None:
    items = [Items()[i] for i in range(4)]
    assert [m.shape[0] for m in collate_groups(items, 2)["mask"]] == [4, 5, 4, 5]
    assert collate_groups(items[::2], 2)["mask"].shape == (2, 4, 5)
    with pytest.raises(InputError, match="3 items do not fill groups of 2"):
        collate_groups(items[:3], 2)
    other = copy.copy(items[1]) | {"image": torch.zeros(3, 4, 6)}
    with pytest.raises(InputError, match=r"differ in shape.*id0.*id1"):
        collate_groups([items[0], other], 2)
