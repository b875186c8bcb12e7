import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.labels import refine
from pgnn_geo.labels.refine import DenseCRF, PixelAdaptiveRefinement


def plain_refinement(images, maps, iterations, dilations, tau=0.3, weight=0.01):
    """Every neighbour written out by indexing; nothing shared with the module."""
    height, width = images.shape[-2:]
    maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    steps = [(y * d, x * d) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]

    def neighbours(x):  # [B, C, N, H, W]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
        return torch.stack(
            [
                x[..., (rows + dy).clamp(0, height - 1), (columns + dx).clamp(0, width - 1)]
                for dy, dx in steps
            ],
            dim=2,
        )

    near = neighbours(images)
    logits = -(((near - images[:, :, None]) / (near.std(2, keepdim=True) + 1e-8) / tau) ** 2)
    distance = torch.tensor([(dy**2 + dx**2) ** 0.5 for dy, dx in steps], dtype=images.dtype)
    position = (-((distance / distance.std() / tau) ** 2)).softmax(0)[None, :, None, None]
    affinity = (logits.mean(1).softmax(1) + weight * position) / (1 + weight)
    for _ in range(iterations):
        maps = (neighbours(maps) * affinity[:, None]).sum(2)
    return affinity, maps


@pytest.mark.parametrize("size", [(9, 13), (1, 4), (30, 17)])
@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4, 24)])
def test_equals_the_plain_sum(size, dilations):
    torch.manual_seed(0)
    images, maps = torch.rand(2, 3, *size).double(), torch.rand(2, 2, 3, 4).double()
    module = PixelAdaptiveRefinement(iterations=3, dilations=dilations)
    affinity, refined = plain_refinement(images, maps, 3, dilations)
    assert torch.allclose(torch.cat(module.affinity(images), dim=1), affinity, atol=1e-10)
    assert torch.allclose(module(images, maps), refined, atol=1e-10)
    assert torch.allclose(module(images.float(), maps.float()).double(), refined, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 24), (9, 13), (1, 1)])
def test_at_half_the_size_it_refines_the_smaller_photo(size):
    torch.manual_seed(0)
    images, maps = torch.rand(2, 3, *size).double(), torch.rand(2, 2, 3, 4).double()
    module = PixelAdaptiveRefinement(iterations=3, dilations=(1, 2), scale=0.5)
    half = [max(1, round(side / 2)) for side in size]
    small = F.interpolate(images, half, mode="area")
    _, refined = plain_refinement(small, maps, 3, (1, 2))
    expected = F.interpolate(refined, size, mode="bilinear")
    assert torch.allclose(module(images, maps), expected, atol=1e-10)
    pixels = (images * 255).round().byte()
    assert torch.allclose(module(pixels, maps), module(pixels.double() / 255, maps), atol=1e-5)
    for wrong in (0.0, 1.5):
        with pytest.raises(InputError, match="'scale'"):
            PixelAdaptiveRefinement(scale=wrong)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 4), flat=st.booleans())
def test_weights_are_an_average(seed, classes, flat):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 12, 11, generator=generator)
    if flat:  # no colour differs: the deviation is 0 and every neighbour counts the same
        images[0] = 0.7
    maps = torch.rand(2, classes, 5, 4, generator=generator).softmax(1)
    module = PixelAdaptiveRefinement(iterations=4, dilations=(1, 3))
    refined = module(images, maps)
    assert refined.shape == (2, classes, 12, 11) and refined.isfinite().all()
    assert torch.allclose(refined.sum(1), torch.ones(2, 12, 11), atol=1e-5)
    assert refined.min() >= maps.min() - 1e-5 and refined.max() <= maps.max() + 1e-5
    one = module(images[1:], maps[1:, :1])  # images and classes are independent
    assert torch.allclose(one, refined[1:, :1], atol=1e-5)


def test_maps_snap_to_colours():
    truth = torch.zeros(1, 1, 64, 64)
    truth[..., 16:48, 20:44] = 1
    torch.manual_seed(0)
    images = 0.2 + 0.5 * truth + 0.02 * torch.randn(1, 3, 64, 64)
    maps = F.avg_pool2d(truth, 16)  # what a coarse attention map knows
    maps = torch.cat([1 - maps, maps], dim=1)
    wrong = (F.interpolate(maps, (64, 64), mode="bilinear").argmax(1) != truth[:, 0]).sum()
    refined = PixelAdaptiveRefinement(dilations=(1, 2, 4, 8))(images, maps)
    assert (refined.argmax(1) != truth[:, 0]).sum() < 0.2 * wrong


def test_keeps_dtype_and_inputs():
    images, maps = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8, requires_grad=True)
    before = maps.detach().clone()
    module = PixelAdaptiveRefinement(iterations=2, dilations=(1, 2))
    refined = module(images, maps)
    assert not refined.requires_grad and torch.equal(maps, before)
    low = module(images.bfloat16(), maps.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), refined, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(images, maps), refined)
    assert module(images[:0], maps[:0]).shape == (0, 2, 8, 8)
    assert list(module.state_dict()) == [] and "iterations=2" in repr(module)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    torch.manual_seed(0)
    images, maps = torch.rand(3, 3, 40, 50), torch.rand(3, 2, 5, 6)
    module = PixelAdaptiveRefinement()
    refined = module.cuda()(images.cuda(), maps.cuda())
    assert refined.is_cuda
    assert torch.allclose(refined.cpu(), module.cpu()(images, maps), atol=1e-5)


@pytest.mark.parametrize("make", [PixelAdaptiveRefinement, DenseCRF])
def test_bad_shapes(make):
    if make is DenseCRF:
        pytest.importorskip("pydensecrf")
    with pytest.raises(InputError, match=r"\[1, 4, 8, 8\]"):
        make()(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 4, 4))
    with pytest.raises(InputError, match="maps"):
        make()(torch.rand(1, 3, 8, 8), torch.rand(2, 2, 4, 4))


def test_bad_arguments():
    with pytest.raises(InputError, match="at least 1"):
        PixelAdaptiveRefinement(iterations=0)
    with pytest.raises(InputError, match="dilation"):
        PixelAdaptiveRefinement(dilations=())


def pydensecrfs_own(image, maps):
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    labels, height, width = maps.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(unary_from_softmax(maps))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
    return np.array(crf.inference(10)).reshape(maps.shape)


def crf_case():
    generator = torch.Generator().manual_seed(0)
    for size in ((20, 31), (24, 16), (9, 9), (17, 5), (32, 32)):
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        yield image, torch.rand(3, *size, generator=generator).softmax(0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_crf_equals_pydensecrf(workers):
    pytest.importorskip("pydensecrf")
    with DenseCRF(workers=workers) as crf:
        refined = list(crf.stream(crf_case()))
        assert len(refined) == 5
        for (image, maps), result in zip(crf_case(), refined, strict=True):
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            assert np.array_equal(result.numpy(), pydensecrfs_own(pixels, maps.numpy()))
            assert torch.equal(crf((image / 255)[None], maps[None])[0], result)
        assert torch.allclose(result.sum(0), torch.ones(32, 32), atol=1e-4)
    if workers:
        assert crf._pool is None


def test_crf_resizes():
    pytest.importorskip("pydensecrf")
    maps = torch.rand(2, 3, 4, 4).softmax(1).half()
    refined = DenseCRF(iterations=1)(torch.rand(2, 3, 16, 12), maps)
    assert refined.shape == (2, 3, 16, 12) and refined.dtype == torch.half


def test_crf_names_its_extra(monkeypatch):
    monkeypatch.setattr(refine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pgnn-geo\[crf\]"):
        DenseCRF()
