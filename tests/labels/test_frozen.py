from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.labels.evidence import EvidenceConfig, fit_tag_evidence, held_out_probabilities
from pgnn_geo.labels.frozen import EvidenceModel, fit_evidence
from pgnn_geo.labels.position_classifier import Positions, fit_position_classifier
from pgnn_geo.labels.propagation import complete, within
from pgnn_geo.nn.propagation import centered_unit

#: For features that are no photographs': the default values are chosen on those.
CHOSEN = {"evidence_penalty": 1e-3, "threshold": 0.3, "prototype_rounds": 1, "positions": 2000}
CONFIG = EvidenceConfig(iterations=60, **CHOSEN)


def scenes(photos=40, classes=3, channels=24, side=8):
    """Photos of a body with a striking part; the bodies of other classes lie there as stones."""
    torch.manual_seed(0)
    tags = F.one_hot(torch.arange(photos) % classes, classes).bool()
    body, part = torch.randn(classes, channels), torch.randn(classes, channels)
    features = 0.4 * torch.randn(photos, channels, side, side)
    truth = torch.zeros(photos, side, side, dtype=torch.bool)
    for photo in range(photos):
        label, other = photo % classes, (photo + 1 + photo // classes % 2) % classes
        top, stone = torch.randint(side - 4, (2,)).tolist()
        truth[photo, top : top + 5, :4] = True
        features[photo, :, top : top + 5, :4] += body[label, :, None, None]
        features[photo, :, top : top + 2, :2] += part[label, :, None, None]
        features[photo, :, stone : stone + 5, 4:] += body[other, :, None, None]
    x = F.normalize(features, dim=1)
    return x.contiguous(memory_format=torch.channels_last), tags, truth


def quality(maps, truth):
    """Mean IoU of the maps, cut at a half, with where the objects are."""
    found = maps.maps > 0.5
    return float(((found & truth).sum((1, 2)) / (found | truth).sum((1, 2))).mean())


def test_each_step_finds_more_of_the_objects():
    x, tags, truth = scenes()
    model = fit_evidence(x, tags, CONFIG)
    evidence, prototypes, classifier = (
        quality(model.maps(x, tags, step), truth)
        for step in ("evidence", "prototypes", "classifier")
    )
    assert evidence + 0.05 < prototypes and prototypes < classifier
    assert quality(model.maps(x[20:], tags[20:]), truth[20:]) > 0.9


@pytest.mark.parametrize("changes", [{}, {"whitening": 0.1, "evidence_window": 3}], ids=str)
def test_the_state_gives_the_same_maps_and_fitting_the_same_state(changes):
    x, tags, _ = scenes(12)
    config = replace(CONFIG, **changes)
    model = fit_evidence(x, tags, config)
    again = fit_evidence(x, tags, config)
    copy = EvidenceModel(3, 24, config)
    copy.load_state_dict(model.state_dict())
    for step in ("evidence", "prototypes", "classifier"):
        expected = model.maps(x, tags, step).maps
        assert torch.equal(copy.maps(x, tags, step).maps, expected)
        assert torch.equal(again.maps(x, tags, step).maps, expected)


def numpy_maps(x, tags, whitening, window):
    """Evidence of the tags and of prototypes, for photos of one tag each, by plain arithmetic."""
    side = x.shape[-1]
    rows = x.double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    if whitening is not None:
        values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
        scale = np.sqrt(values + whitening * values.mean())
        rows = (rows - rows.mean(0)) @ (vectors / scale)
    rows = rows - rows.mean(0)
    label = tags.int().argmax(1).numpy()

    def peaked(values):  # [photos, positions]
        values = np.maximum(values, 0)
        return values / values.max(axis=1, keepdims=True)

    photos = rows.reshape(len(tags), side * side, -1)
    weight, _ = fit_tag_evidence(torch.from_numpy(photos.mean(1)), tags, 1e-3)
    evidence = peaked(np.einsum("mpc,mc->mp", photos, weight.double().numpy()[label]))
    reach, grid = window // 2, evidence.reshape(-1, side, side)
    seen = np.empty_like(grid)
    for photo, y, column in np.ndindex(*grid.shape):
        around = [slice(max(0, at - reach), at + reach + 1) for at in (y, column)]
        seen[photo, y, column] = grid[photo][*around].mean()
    seen = peaked(seen.reshape(len(tags), -1))
    unit = photos / np.linalg.norm(photos, axis=2, keepdims=True)
    ground = np.einsum("mp,mpc->c", (1 - seen) ** 2, unit)
    prototypes = np.empty((tags.size(1), unit.shape[2]))
    for k in range(len(prototypes)):
        own = seen[label == k] * (seen[label == k] > CHOSEN["threshold"])
        total = np.einsum("mp,mpc->c", own, unit[label == k])
        prototypes[k] = total / np.linalg.norm(total) - ground / np.linalg.norm(ground)
    scores = peaked(np.einsum("mpc,mc->mp", unit, prototypes[label]))
    edges = np.maximum(np.einsum("mpc,mqc->mpq", unit, unit), 0) ** 2
    passed = np.einsum("mpq,mq->mp", edges / edges.sum(axis=2, keepdims=True), scores)
    return {"evidence": evidence, "prototypes": peaked(passed)}


@pytest.mark.parametrize("whitening", [None, 0.1])
@pytest.mark.parametrize("window", [1, 5])
def test_evidence_and_prototypes_against_plain_arithmetic(whitening, window):
    x, tags, _ = scenes(12)
    config = replace(CONFIG, whitening=whitening, evidence_window=window, classifier_rounds=0)
    model = fit_evidence(x, tags, config)
    for step, expected in numpy_maps(x, tags, whitening, window).items():
        found = model.maps(x, tags, step).maps.flatten(1).double().numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_features_that_are_white_are_as_good_as_whitened_ones():
    x, tags, _ = scenes(12)
    model = fit_evidence(x, tags, replace(CONFIG, whitening=0.1))
    seen = model.seen(x)[torch.arange(12)]
    plain = fit_evidence(seen, tags, CONFIG)
    for step in ("evidence", "prototypes", "classifier"):
        expected = plain.maps(seen, tags, step).maps
        torch.testing.assert_close(model.maps(x, tags, step).maps, expected)
    assert set(model.state_dict()) - set(plain.state_dict()) == {
        "whitening.mean",
        "whitening.transform",
    }


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("whitening", [None, 0.1])
def test_the_last_step_is_what_travels_within_the_photos(rounds, whitening):
    x, tags, _ = scenes(12)
    config = replace(CONFIG, classifier_rounds=rounds, whitening=whitening)
    model = fit_evidence(x, tags, config)
    step = model.config.last_step
    assert step == ("classifier" if rounds else "prototypes")
    expected = model.maps(x, tags).maps
    assert torch.equal(expected, model.maps(x, tags, step).maps)
    source = model.before_propagation(x, tags)
    found = complete(source.features, source.start, [within(source.layer)]).maps
    torch.testing.assert_close(found, expected)


def test_a_warm_start_begins_with_the_round_before():
    x, tags, _ = scenes(12)
    cold, warm = (
        fit_evidence(
            x, tags, EvidenceConfig(iterations=3, classifier_rounds=3, warm_start=warm, **CHOSEN)
        )
        for warm in (False, True)
    )
    # Three rounds of three steps have moved further than one of them.
    assert warm.classifier.norm() > 1.1 * cold.classifier.norm()


def test_photos_do_not_depend_on_what_they_are_labelled_with():
    x, tags, _ = scenes(12)
    model = fit_evidence(x, tags, CONFIG)
    alone = model.maps(x[5:6], tags[5:6]).maps
    torch.testing.assert_close(alone, model.maps(x, tags).maps[5:6])


def test_more_rounds_and_a_grid_are_heeded():
    x, tags, _ = scenes(12)
    once, twice = (
        fit_evidence(x, tags, EvidenceConfig(classifier_rounds=n, **CHOSEN)).maps(x, tags)
        for n in (1, 2)
    )
    assert (once.maps - twice.maps).abs().max() > 1e-3
    coarse = fit_evidence(x, tags, EvidenceConfig(grid=4, **CHOSEN)).maps(x, tags).maps
    assert torch.equal(coarse[:, ::2, ::2], coarse[:, 1::2, 1::2])
    # No more patches than positions.
    finer = fit_evidence(x, tags, EvidenceConfig(grid=16, **CHOSEN)).maps(x, tags).maps
    assert torch.equal(finer, fit_evidence(x, tags, EvidenceConfig(**CHOSEN)).maps(x, tags).maps)


def test_a_round_learns_from_the_maps_of_the_one_before():
    x, tags, _ = scenes(12)
    two, three = (
        fit_evidence(x, tags, EvidenceConfig(classifier_rounds=n, iterations=300, **CHOSEN))
        for n in (2, 3)
    )
    maps = two.maps(x, tags)
    rows = maps.maps.flatten(1)  # one tag a photo
    label = torch.where(rows > two.config.foreground, maps.classes[:, None] + 1, -1)
    label = label.masked_fill(rows < two.config.background, 0).flatten()
    unit = centered_unit(x.flatten(2).transpose(1, 2).flatten(0, 1), x.mean((0, 2, 3)))
    allowed = F.pad(tags, (1, 0), value=True).repeat_interleave(64, dim=0)
    weight = fit_position_classifier(Positions(unit, label, allowed))
    torch.testing.assert_close(three.classifier, weight, rtol=1e-2, atol=1e-2)
    assert (two.classifier - weight).abs().max() > 0.1


def test_what_travels_with_one_class_is_left_to_the_ground():
    """A train lies on rails that no other class has; to all others what is like rails is ground."""
    torch.manual_seed(0)
    classes, channels, side = 4, 32, 8
    tags = F.one_hot(torch.arange(40) % classes, classes).bool()
    thing, ground = torch.randn(2, channels)
    body, rails = torch.randn(classes, channels), torch.randn(channels)
    features = 0.3 * torch.randn(40, channels, side, side) + ground[:, None, None]
    train = torch.zeros(40, side, side, dtype=torch.bool)
    for photo, label in enumerate((torch.arange(40) % classes).tolist()):
        features[photo, :, 1:4, 2:6] = 0.3 * torch.randn(channels, 3, 4)
        features[photo, :, 1:4, 2:6] += (thing + body[label])[:, None, None]
        if label == 0:
            features[photo, :, 4:7] += 1.5 * rails[:, None, None]
            train[photo, 1:4, 2:6] = True
    x = F.normalize(features, dim=1).contiguous(memory_format=torch.channels_last)
    found = {}
    for objectness in (False, True):
        config = EvidenceConfig(objectness=objectness, **CHOSEN)
        maps = fit_evidence(x, tags, config).maps(x[tags[:, 0]], tags[tags[:, 0]])
        found[objectness] = quality(maps, train[tags[:, 0]])
    assert found[False] < 0.5 and found[True] > 0.9


def test_confidence_scales_maps_by_their_largest_probability():
    x, tags, _ = scenes(12)
    model = fit_evidence(x, tags, CONFIG)
    maps = {}
    for confidence in (0.0, 0.5, 1.0):
        model.config = replace(CONFIG, confidence=confidence)
        maps[confidence] = model.maps(x, tags).maps
    assert (maps[0.0].amax((1, 2)) == 1).all() and (maps[1.0].amax((1, 2)) < 1).any()
    expected = maps[0.0] * maps[1.0].amax((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(maps[0.5], expected)


def test_it_is_fitted_on_a_coarser_grid_than_it_labels():
    x, tags, _ = scenes(12)
    fine = fit_evidence(x, tags, replace(CONFIG, fit_grid=4))
    grid = fit_evidence(x, tags, replace(CONFIG, grid=4))
    assert torch.equal(fine.classifier, grid.classifier)
    rows = fine.maps(x, tags).maps
    assert not torch.equal(rows[:, ::2, ::2], rows[:, 1::2, 1::2])


def test_wrong_input_is_named():
    x, tags, _ = scenes(12)
    with pytest.raises(InputError, match="features of 12 photos, tags of 11"):
        fit_evidence(x, tags[1:])
    with pytest.raises(InputError, match="prototype_rounds=0: want 1 or more"):
        EvidenceConfig(prototype_rounds=0)
    with pytest.raises(InputError, match="classifier_rounds=-1: want 0 or more"):
        EvidenceConfig(classifier_rounds=-1)
    for window, words in ((0, "want 1 or more"), (4, "want an odd number")):
        with pytest.raises(InputError, match=f"evidence_window={window}: {words}"):
            EvidenceConfig(evidence_window=window)
    with pytest.raises(InputError, match=r"absence=1\.0: want more than 0 and less than 1"):
        EvidenceConfig(absence=1.0)
    with pytest.raises(InputError, match="judged by the classifier: want classifier_rounds of 1"):
        EvidenceConfig(absence=0.7, classifier_rounds=0)
    with pytest.raises(InputError, match="whitening=0: want more than 0"):
        EvidenceConfig(whitening=0)
    model = fit_evidence(x, tags, replace(CONFIG, classifier_rounds=0))
    with pytest.raises(InputError, match="this model has none, classifier_rounds=0"):
        model.maps(x, tags, "classifier")
    with pytest.raises(InputError, match="fit_grid=0: want 1 or more"):
        EvidenceConfig(fit_grid=0)
    with pytest.raises(InputError, match="confidence=2: want 0 to 1"):
        EvidenceConfig(confidence=2)


def test_missing_tags_are_found_and_cost_little_where_absence_is_not_trusted():
    """Photos of two bodies each; a fifth of them has only one of the two tags."""
    x, tags, _ = scenes(60)
    full = tags | F.one_hot((torch.arange(60) + 1 + torch.arange(60) // 3 % 2) % 3, 3).bool()
    kept = full.clone()
    kept[::5] = tags[::5]
    model = fit_evidence(x, kept, replace(CONFIG, absence=0.1))
    added = model.with_missing(x, kept) & ~kept
    assert (added & full).sum() >= 0.5 * (full & ~kept).sum()
    assert (added & ~full).sum() <= 0.2 * added.sum()
    copy = EvidenceModel(3, 24, model.config)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.with_missing(x, kept) & ~kept, added)
    plain = fit_evidence(x, kept, CONFIG)
    assert torch.equal(plain.with_missing(x, kept), kept)
    assert "absence" not in plain.state_dict()  # so that models of before are read


def test_doubtful_absence_is_not_learned_from(monkeypatch):
    x, tags, _ = scenes(12)
    seen = []
    fit = fit_position_classifier

    def spy(positions, *args, **options):
        seen.append(positions.allowed)
        return fit(positions, *args, **options)

    monkeypatch.setattr("pgnn_geo.labels.frozen.fit_position_classifier", spy)
    model = fit_evidence(x, tags, replace(CONFIG, absence=0.05, classifier_rounds=1))
    likely = held_out_probabilities(x.mean((2, 3)) - x.mean((0, 2, 3)), tags, 1e-3)
    least = torch.stack([likely[tags[:, k], k].quantile(0.05) for k in range(3)])
    possible = tags | (likely > least)
    assert possible.sum() > tags.sum()
    rows = seen[0].unflatten(0, (12, -1))
    assert torch.equal(rows[:, 0, 1:], possible) and bool(rows[..., 0].all())
    means = x.mean((2, 3))
    weight, _ = fit_tag_evidence(means - means.mean(0), tags, 1e-3, possible == tags)
    torch.testing.assert_close(model.evidence, weight, atol=1e-4, rtol=1e-3)
