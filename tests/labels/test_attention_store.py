import json
import os
import pickle
import subprocess
import sys
import time

import forked
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from pgnn_geo.errors import InputError
from pgnn_geo.graph import PatchGraphBuilder
from pgnn_geo.labels.attention_store import AttentionStore

IDS = ["a", "b", "c"]
SIZES = [[96, 128], [75, 101], [64, 64]]
TAGS = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])


@pytest.fixture
def make(tmp_path):
    return lambda **arguments: AttentionStore(tmp_path / "maps.bin", IDS, SIZES, TAGS, **arguments)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_whole_photo_round_trip(make, dtype):
    store = make(dtype=dtype)
    maps = torch.rand(1, 4, 12, 16)  # exactly the cells of 96 x 128 at stride 8
    store.write(["a"], maps)
    out = store.read(["a"], size=(12, 16))
    torch.testing.assert_close(out[:, [0, 3]], maps[:, [0, 3]], rtol=0, atol=0.5 / 254 + 1e-6)
    assert out[:, [1, 2]].abs().max() == 0  # only tagged classes are kept
    mirrored = store.read([0], flip=torch.tensor([True]), size=(12, 16))
    assert torch.equal(mirrored, out.flip(-1))
    assert store.read(["b"], size=(3, 3)).abs().max() == 0
    assert store.read(["c"], size=(3, 3)).abs().max() == 0
    assert store.written(IDS).tolist() == [True, False, False]


@settings(deadline=None, max_examples=25)
@example(x=0, y=-4, width=24, height=24, flip=False, side=8)  # a centre on the crop's border
@given(
    x=st.integers(-20, 90),
    y=st.integers(-20, 60),
    width=st.integers(24, 120),
    height=st.integers(24, 120),
    flip=st.booleans(),
    side=st.sampled_from([8, 13, 32]),
)
def test_round_trip_within_one_cell(tmp_path_factory, x, y, width, height, flip, side):
    # The map holds its own position, in pixels of the photo; what is read may be a cell away.
    store = AttentionStore(
        tmp_path_factory.mktemp("s") / "m", ["a"], [[96, 128]], [[1, 1]], dtype="float16"
    )
    crop, flips = boxes([x, y, x + width, y + height]), torch.tensor([flip])
    xs = x + (torch.arange(side) + 0.5) / side * width
    ys = y + (torch.arange(side) + 0.5) / side * height
    truth = torch.stack([xs.expand(side, side), ys[:, None].expand(side, side)])[None]
    maps = (truth.flip(-1) if flip else truth) / 256
    store.write(["a"], maps.clamp(0, 1), crop, flips)
    out = store.read(["a"], crop, flips, size=(side, side)) * 256
    out = out.flip(-1) if flip else out
    cell = max(8, width / side, height / side)
    inside = (xs > x + cell) & (xs < x + width - cell) & (xs > cell) & (xs < 128 - cell)
    inside = (
        inside
        & ((ys > y + cell) & (ys < y + height - cell) & (ys > cell) & (ys < 96 - cell))[:, None]
    )
    error = (out - truth)[0, :, inside].abs()
    assert error.numel() == 0 or error.max() <= cell

    # Read without crop and flip: every covered cell holds its own place in the photo.
    grid = store.read(["a"], size=(12, 16))[0] * 256
    gx, gy = 4 + 8 * torch.arange(16), 4 + 8 * torch.arange(12)
    covered = ((gx >= x) & (gx < x + width)) & ((gy >= y) & (gy < y + height))[:, None]
    assert torch.equal(grid.sum(dim=0) > 0, covered)
    error = (grid[0] - gx).abs()[covered]
    assert error.numel() == 0 or error.max() <= cell
    error = (grid[1] - gy[:, None]).abs()[covered]
    assert error.numel() == 0 or error.max() <= cell


def test_resampling_is_that_of_interpolate(make):
    store = make(dtype="float16")
    maps = torch.rand(1, 4, 7, 5)
    store.write(["a"], maps)
    expected = F.interpolate(maps, (12, 16), mode="bilinear")[:, [0, 3]]
    out = store.read(["a"], size=(12, 16))[:, [0, 3]]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)
    # A photo with no whole number of cells is spanned by its grid all the same.
    store.write(["b"], maps)
    out = store.read(["b"], size=(10, 13))[:, 1]
    torch.testing.assert_close(
        out, F.interpolate(maps, (10, 13), mode="bilinear")[:, 1], rtol=0, atol=1e-3
    )


def test_only_covered_cells_change(make):
    store = make()
    store.write(["a"], torch.full((1, 4, 4, 4), 0.25))
    store.write(["a"], torch.ones(1, 4, 4, 4), boxes([0, 0, 64, 48]))
    out = store.read(["a"], size=(12, 16))[0, 0]
    assert (out[:6, :8] == 1).all()
    assert ((out - 0.25).abs() < 0.01).sum() == 12 * 16 - 6 * 8
    # A crop that is not flipped, of a map whose left half is 1, must land on the left.
    half = torch.zeros(1, 4, 4, 8)
    half[..., :4] = 1
    store.write(["a"], half, boxes([64, 48, 128, 96]), torch.tensor([True]))
    out = store.read(["a"], size=(12, 16))[0, 0]
    assert (out[6:, 8:12] == 0).all() and (out[6:, 12:] == 1).all()


def test_policies(tmp_path):
    values = {}
    for policy in ("last", "max", "ema"):
        store = AttentionStore(
            tmp_path / policy, IDS, SIZES, TAGS, policy=policy, momentum=0.75, dtype="float16"
        )
        store.write(["a"], torch.full((1, 4, 2, 2), 0.8))
        store.write(["a", "b"], torch.full((2, 4, 2, 2), 0.4))
        values[policy] = [store.read([i], size=(1, 1)).max().item() for i in ("a", "b")]
    assert values["last"] == pytest.approx([0.4, 0.4], abs=1e-3)
    assert values["max"] == pytest.approx([0.8, 0.4], abs=1e-3)
    assert values["ema"] == pytest.approx([0.7, 0.4], abs=1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_a_written_zero_is_not_an_unwritten_cell(tmp_path, dtype):
    store = AttentionStore(tmp_path / "m", IDS, SIZES, TAGS, policy="ema", dtype=dtype)
    store.write(["a"], torch.zeros(1, 4, 2, 2))
    assert store.written(["a"]).all()
    store.write(["a"], torch.ones(1, 4, 2, 2))
    out = store.read(["a"], size=(12, 16))[0, 0]
    torch.testing.assert_close(out, torch.full_like(out, 0.5), rtol=0, atol=0.01)


def test_node_class(make):
    store = make()
    maps = torch.zeros(2, 4, 12, 16)
    maps[0, 0, :6, :8] = 1.0  # class 1: upper left of photo a
    maps[0, 3, 6:, 8:] = 0.9  # class 4: lower right
    maps[0, 0, 6:, 8:] = 0.8
    maps[0, 3, 6:, :8] = 0.2  # too weak
    maps[0, 1] = 1.0  # not a tag of photo a
    maps[1, 1] = 1.0
    store.write(["a", "b"], maps)
    out = store.node_class(["a", "b"], 2, size=(12, 16), threshold=0.3)
    assert out.tolist() == [1, 0, 0, 4, 2, 2, 2, 2] and out.dtype == torch.long
    flipped = store.node_class(["a"], 2, flip=torch.tensor([True]), size=(12, 16))
    assert flipped.tolist() == [0, 1, 4, 0]
    crop = store.node_class(["a"], 1, boxes([0, 0, 64, 48]), size=(8, 8))
    assert crop.tolist() == [1]


@pytest.mark.parametrize("size", [(12, 16), (5, 8), (9, 13)])
@pytest.mark.parametrize("grid", [2, 4])
def test_node_class_follows_the_patches_of_the_graph(make, size, grid):
    store = make()
    store.write(["a", "b"], torch.rand(2, 4, 12, 16).square())
    maps = store.read(["a", "b"], size=size)
    patches = PatchGraphBuilder(grid=grid)(maps).x  # [V, K, p, p]
    best, label = patches.mean(dim=(2, 3)).max(dim=1)
    expected = torch.where(best > 0.35, label + 1, 0)
    assert 0 < (expected > 0).sum() < len(expected)
    out = store.node_class(["a", "b"], grid, size=size, threshold=0.35)
    assert torch.equal(out, expected)


def test_reopen(make, tmp_path):
    make(policy="max", stride=16, dtype="float16").write(["a"], torch.ones(1, 4, 2, 2))
    for store in (
        make(policy="max", stride=16, dtype="float16"),
        AttentionStore.open(tmp_path / "maps.bin"),
    ):
        assert store.read(["a"], size=(1, 1))[0, 0].item() == 1
        assert repr(store) == (
            "AttentionStore(3, num_classes=4, stride=16, dtype='float16', policy='max')"
        )
    with pytest.raises(InputError, match="other stride, policy"):
        make(dtype="float16")
    with pytest.raises(InputError, match="no attention store"):
        AttentionStore.open(tmp_path / "elsewhere")


def test_files_cut_short_are_noticed(make, tmp_path):
    make()
    data, index = tmp_path / "maps.bin", tmp_path / "maps.bin.json"
    os.truncate(data, 100)
    with pytest.raises(InputError, match="100 bytes long"):
        make()
    data.unlink()
    with pytest.raises(InputError, match="missing"):
        AttentionStore.open(data)
    index.write_text(index.read_text()[:50])
    with pytest.raises(InputError, match="not a store's index"):
        AttentionStore.open(data)
    index.write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="not an index"):
        make()
    index.unlink()
    data.write_bytes(b"left by a run that died before the index")
    store = make()  # made again, from nothing
    assert not store.written(IDS).any()


def test_a_killed_writer_leaves_a_whole_store(make, tmp_path):
    make()

    def write():
        AttentionStore.open(tmp_path / "maps.bin").write(["a"], torch.ones(1, 4, 2, 2))
        os.kill(os.getpid(), 9)

    assert forked.run(write) == -9
    store = make()
    assert store.written(IDS).tolist() == [True, False, False]
    assert store.read(["a"], size=(2, 2))[0, 0].min() == 1


class Reader(Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return 24

    def __getitem__(self, i):
        return self.store.read([i % 2], size=(4, 4))[0]


def test_workers_see_what_the_main_process_writes(make):
    store = make()
    store.write(["a"], torch.full((1, 4, 2, 2), 0.5))  # maps the file before the fork
    loader = DataLoader(Reader(store), batch_size=4, num_workers=2, multiprocessing_context="fork")
    for value in (1.0, 0.0):
        store.write(["a", "b"], torch.full((2, 4, 2, 2), value))
        out = torch.cat(list(loader))
        assert (out[0::2, 0] == value).all() and (out[1::2, 1] == value).all()


def test_pickling_leaves_the_values_on_disk(make):
    store = make()
    store.write(["a"], torch.full((1, 4, 2, 2), 0.5))
    pickled = pickle.dumps(store)
    assert len(pickled) < 10_000
    other = pickle.loads(pickled)
    assert torch.equal(other.read(["a"], size=(4, 4)), store.read(["a"], size=(4, 4)))


def test_input_errors(make, tmp_path):
    store = make()
    maps = torch.zeros(1, 4, 2, 2)
    with pytest.raises(InputError, match="'z' is not among"):
        store.read(["z"], size=(2, 2))
    with pytest.raises(InputError, match="3 is not among"):
        store.write([3], maps)
    with pytest.raises(InputError, match=r"want \[1, 4, h, w\]"):
        store.write(["a"], maps[:, :3])
    with pytest.raises(InputError, match="image 'a' are not finite"):
        store.write(["a"], maps + float("nan"))
    with pytest.raises(InputError, match="x1 < x2"):
        store.write(["a"], maps, boxes([5, 5, 5, 9]))
    with pytest.raises(InputError, match=r"want \[B, 4\]"):
        store.write(["a"], maps, boxes([0, 0, 5, 5], [0, 0, 5, 5]))
    with pytest.raises(InputError, match="'a' stands twice"):
        AttentionStore(tmp_path / "x", ["a", "a", "c"], SIZES, TAGS)
    with pytest.raises(InputError, match="want M"):
        AttentionStore(tmp_path / "x", ["a"], SIZES, TAGS)
    for wrong in ({"policy": "sum"}, {"dtype": "int8"}, {"momentum": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            AttentionStore(tmp_path / "x", IDS, SIZES, TAGS, **wrong)
    assert not (tmp_path / "x").exists()


def test_all_of_voc_is_small_and_opens_at_once(tmp_path):
    count = 10_582
    ids = [f"2008_{i:06d}" for i in range(count)]
    tags = np.zeros((count, 20))
    tags[np.arange(count), np.arange(count) % 20] = 1
    tags[np.arange(0, count, 2), (np.arange(0, count, 2) + 7) % 20] = 1  # 1.5 tags on average
    path = tmp_path / "voc"
    AttentionStore(path, ids, np.tile([375, 500], (count, 1)), tags)
    assert path.stat().st_size + (tmp_path / "voc.json").stat().st_size < 100e6
    code = (
        "import time, resource\n"
        "from pgnn_geo.labels.attention_store import AttentionStore\n"
        "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, start = rss(), time.process_time()\n"
        f"store = AttentionStore.open({str(path)!r})\n"
        "store.read([5000], size=(32, 32))\n"
        "print(time.process_time() - start, rss() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    seconds, megabytes = map(float, result.stdout.split())
    assert seconds < 1 and megabytes < 30
    start = time.process_time()
    AttentionStore.open(path)
    assert time.process_time() - start < 1
