import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.nn.propagation import CongenericPropagation
from pgnn_geo.nn.prototypes import ClassPrototypes


def photos(count=6, classes=3, channels=8, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, channels, side, side, generator=generator).relu()
    scores = torch.rand(count, classes, side, side, generator=generator)
    tags = (torch.rand(count, classes, generator=generator) > 0.5).float()
    tags[0] = 1
    return features, scores, tags


def fit(bank, features, scores, tags, parts=(6,), mean=True):
    if mean:
        for f in features.split(parts):
            bank.update_mean(f)
    for f, s, t in zip(features.split(parts), scores.split(parts), tags.split(parts), strict=True):
        bank.update(f, s, t)
    return bank


def test_against_a_loop_over_positions():
    features, scores, tags = photos()
    bank = fit(ClassPrototypes(3, 8), features, scores, tags)
    mean = features.double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(bank.mean.double(), mean, rtol=1e-6, atol=1e-7)

    sums, background = torch.zeros(3, 8, dtype=torch.double), torch.zeros(8, dtype=torch.double)
    for b in range(6):
        for i in range(4):
            for j in range(4):
                f = features[b, :, i, j].double() - mean
                f = f / f.norm()
                a = scores[b, :, i, j].double() * tags[b].double()
                for c in range(3):
                    if a[c] > 0.3:
                        sums[c] += a[c] * f
                background += (1 - a.max()) ** 2 * f
    expected = sums / sums.norm(dim=1, keepdim=True) - background / background.norm()
    torch.testing.assert_close(bank.prototypes().double(), expected, rtol=1e-5, atol=1e-6)

    score = bank.score(features)
    f = features[1, :, 2, 3].double() - mean
    value = (expected @ (f / f.norm())).clamp(min=0)
    torch.testing.assert_close(score[1, :, 2, 3].double(), value, rtol=1e-5, atol=1e-6)
    assert score.shape == (6, 3, 4, 4) and score.min() == 0


def test_class_sums_are_the_linear_propagation():
    # To compare a position with the class sum is to propagate along all unrectified edges.
    features, scores, tags = photos()
    bank = fit(ClassPrototypes(3, 8, threshold=0.0), features, scores, tags)
    flat = features.permute(0, 2, 3, 1).reshape(-1, 8)
    node_tags = tags.repeat_interleave(16, dim=0)
    values = scores.permute(0, 2, 3, 1).reshape(-1, 3)
    prop = CongenericPropagation("linear", mean=bank.mean)
    out = prop(values, flat, batch=torch.zeros(96, dtype=torch.long), node_tags=node_tags)
    unit = torch.nn.functional.normalize(flat - bank.mean, dim=1)
    expected = unit.double() @ bank.class_sum.t() * node_tags
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 6), size=st.integers(1, 6))
def test_merged_shards_equal_one_pass(seed, cut, size):
    data = photos(seed=seed)
    one = fit(ClassPrototypes(3, 8), *data)
    shards = [ClassPrototypes(3, 8), ClassPrototypes(3, 8)]
    halves = [tuple(x[:cut] for x in data), tuple(x[cut:] for x in data)]
    for shard, half in zip(shards, halves, strict=True):
        for f in half[0].split(size):
            shard.update_mean(f)
    shards[0].merge(shards[1])
    shards[1] = ClassPrototypes(3, 8, mean=shards[0].mean)
    for shard, half in zip(shards, halves, strict=True):
        parts = [x.split(size) for x in half]
        for f, s, t in zip(*parts, strict=True):
            shard.update(f, s, t)
    shards[0].merge(shards[1])
    assert torch.equal(shards[0].mean, one.mean)
    assert torch.equal(shards[0].prototypes(), one.prototypes())
    torch.testing.assert_close(shards[0].class_sum, one.class_sum, rtol=1e-12, atol=1e-12)
    assert shards[0].position_count == one.position_count == 96


def test_class_without_evidence_scores_nothing():
    features, scores, tags = photos()
    tags[:, 1] = 0
    bank = fit(ClassPrototypes(3, 8), features, scores, tags)
    assert torch.equal(bank.prototypes()[1], torch.zeros(8))
    assert bank.score(features)[:, 1].max() == 0
    assert bank.score(features)[:, 0].max() > 0


def test_state_dict_round_trip(tmp_path):
    data = photos()
    bank = fit(ClassPrototypes(3, 8), *data)
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    other = ClassPrototypes(3, 8)
    other.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert torch.equal(other.prototypes(), bank.prototypes())
    fit(other, *data, mean=False)  # a loaded bank goes on where it stopped
    torch.testing.assert_close(other.class_sum, 2 * bank.class_sum)
    assert str(bank) == "ClassPrototypes(3, 8, threshold=0.3)"


def test_score_is_differentiable():
    bank = fit(ClassPrototypes(3, 8), *photos())
    features = photos(seed=9)[0][:1].double().requires_grad_()
    assert torch.autograd.gradcheck(bank.score, (features,), atol=1e-4)


def test_bfloat16_features():
    features, scores, tags = photos(count=6)
    exact = fit(ClassPrototypes(3, 8), features, scores, tags)
    half = fit(ClassPrototypes(3, 8), features.bfloat16(), scores.bfloat16(), tags)
    assert half.class_sum.dtype == torch.float64
    torch.testing.assert_close(half.prototypes(), exact.prototypes(), rtol=0.1, atol=0.05)


def test_input_errors():
    features, scores, tags = photos()
    bank = ClassPrototypes(3, 8)
    with pytest.raises(InputError, match="call update_mean"):
        bank.update(features, scores, tags)
    bank.update_mean(features)
    with pytest.raises(InputError, match=r"want \[0, 1\]"):
        bank.update(features, scores * 2, tags)
    with pytest.raises(InputError, match="positions of the features"):
        bank.update(features, scores[..., :2], tags)
    with pytest.raises(InputError, match="tags"):
        bank.update(features, scores, tags[:, :2])
    broken = features.clone()
    broken[2, 3, 1, 1] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        bank.update(broken, scores, tags)
    assert bank.class_sum.abs().max() == 0
    bank.update(features, scores, tags)
    with pytest.raises(InputError, match="update_mean after update"):
        bank.update_mean(features)
    with pytest.raises(InputError, match="differ in the mean"):
        bank.merge(fit(ClassPrototypes(3, 8), features + 1, scores, tags))
    with pytest.raises(InputError, match="cannot merge"):
        bank.merge(ClassPrototypes(4, 8))


def test_all_reduce_alone_changes_nothing():
    bank = fit(ClassPrototypes(3, 8), *photos())
    before = bank.class_sum.clone()
    bank.all_reduce()
    assert torch.equal(bank.class_sum, before)


def _rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    data = tuple(x[rank::2] for x in photos())
    bank = ClassPrototypes(3, 8)
    bank.update_mean(data[0])
    bank.all_reduce()
    bank.update(*data)
    bank.all_reduce()
    torch.save(bank.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_reduce_of_two_ranks_equals_one_pass(tmp_path):
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    one = fit(ClassPrototypes(3, 8), *photos())
    for rank in range(2):
        bank = ClassPrototypes(3, 8)
        bank.load_state_dict(torch.load(tmp_path / f"{rank}.pt"))
        assert torch.equal(bank.prototypes(), one.prototypes())
        assert bank.position_count == one.position_count
