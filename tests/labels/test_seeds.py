import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.labels.refine import DenseCRF, PixelAdaptiveRefinement, build_refinement
from pgnn_geo.labels.seeds import background_score, refined_labels, seed_labels


def test_hand_made_case():
    attention = torch.tensor([[[0.1, 0.9], [0.3, 0.3]], [[0.15, 0.2], [0.6, 0.3]]])
    assert seed_labels(attention, background=0.25).tolist() == [[0, 1], [2, 1]]
    assert seed_labels(attention, classes=torch.tensor([3, 7])).tolist() == [[0, 3], [7, 3]]


def test_power_rule():
    attention = torch.tensor([[[0.4]], [[0.7]]])
    torch.testing.assert_close(background_score(attention, power=2.0), torch.tensor([[[0.09]]]))
    assert seed_labels(attention, power=0.1).item() == 0  # 0.3 ** 0.1 = 0.89 beats 0.7


def test_size_of_the_photo():
    label = seed_labels(torch.eye(2)[None], size=(5, 7))
    assert label.shape == (5, 7) and label.dtype == torch.uint8
    assert label[0, 0] == 1 and label[0, -1] == 0


@pytest.mark.parametrize("options", [{"background": 0.0}, {"background": None}, {"power": -1.0}])
def test_bad_rules(options):
    with pytest.raises(InputError):
        seed_labels(torch.rand(1, 2, 2), **options)


def tagged_photos(count=4):
    """Photos of several sizes, each with one to three of seven classes."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        size = (40 + 3 * index, 52 - 7 * index)
        coarse = torch.rand(1, 3, 5, 4, generator=generator)
        image = F.interpolate(coarse, size, mode="nearest")[0].mul(255).byte()
        attention = torch.rand(1 + index % 3, 6, 5, generator=generator)
        classes = torch.randperm(7, generator=generator)[: len(attention)] + 1
        yield image, attention, classes


def upsampled_scores(image, attention, **rule):
    maps = F.interpolate(attention[None], image.shape[1:], mode="bilinear", align_corners=False)[0]
    return torch.cat([background_score(maps, **rule), maps])


def test_unrefined_labels_are_seed_labels():
    for rule in ({"background": 0.4}, {"power": 2.0}):
        labels = list(refined_labels(tagged_photos(), None, **rule))
        for (image, attention, classes), label in zip(tagged_photos(), labels, strict=True):
            expected = seed_labels(attention, tuple(image.shape[1:]), classes, **rule)
            assert torch.equal(label, expected)


@pytest.mark.parametrize("rule", [{"background": 0.4}, {"power": 2.0}])
def test_par_labels_are_its_parts_put_together(rule):
    par = build_refinement("par", iterations=4, dilations=(1, 2))
    changed = 0
    labels = list(refined_labels(tagged_photos(), par, **rule))
    for (image, attention, classes), label in zip(tagged_photos(), labels, strict=True):
        scores = upsampled_scores(image, attention, **rule)
        refine = PixelAdaptiveRefinement(4, (1, 2), scale=0.5)
        refined = refine(image[None] / 255, scores[None])[0]
        names = torch.cat([torch.tensor([0]), classes])
        assert label.dtype == torch.uint8
        assert torch.equal(label, names[refined.argmax(0)].byte())
        changed += int((label != names[scores.argmax(0)]).sum())
    assert changed > 100


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_crf_labels_are_pydensecrfs_own(workers):
    pytest.importorskip("pydensecrf")
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    with DenseCRF(iterations=5, workers=workers) as refinement:
        labels = list(refined_labels(tagged_photos(7), refinement, 0.4))
    for (image, attention, classes), label in zip(tagged_photos(7), labels, strict=True):
        scores = upsampled_scores(image, attention, background=0.4)
        crf = densecrf.DenseCRF2D(scores.size(2), scores.size(1), len(scores))
        crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(scores.numpy())))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=pixels, compat=10)
        best = np.array(crf.inference(5)).argmax(0).reshape(image.shape[1:])
        names = np.concatenate([[0], classes.numpy()])
        assert np.array_equal(label.numpy(), names[best])


def test_refinement_of_a_name():
    assert build_refinement("none") is None
    par = build_refinement("par", iterations=3, dilations=[2, 5])
    assert isinstance(par, PixelAdaptiveRefinement)
    assert (par.iterations, par.dilations, par.scale) == (3, (2, 5), 0.5)
    with pytest.raises(InputError, match="'bilateral': want one of none, par, crf"):
        build_refinement("bilateral")
