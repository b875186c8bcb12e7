r"""Refinement of class maps along the edges of the photograph."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.registry import Registry

#: Default distances of the neighbours in :class:`PixelAdaptiveRefinement`, those of its paper.
DILATIONS = (1, 2, 4, 8, 12, 24)

#: At half the size they reach as far; the labels are as good, in a fifth of the time.
HALF_SIZE, HALF_SIZE_DILATIONS = 0.5, (1, 2, 4, 8, 12)


class Refinement:
    """Fits class maps to the edges of photos: a base that asks for one function.

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, uint8 or in :math:`[0, 1]`, and maps
          :math:`(B, K, h, w)`, background among them
        - **output:** maps :math:`(B, K, H, W)`
    """

    def __call__(self, images: Tensor, maps: Tensor) -> Tensor:
        """Resize :obj:`maps` to the images and refine them."""
        raise NotImplementedError

    def stream(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Refine pairs of an image :math:`(3, H, W)` and maps :math:`(K, h, w)`, in order.

        Sizes may differ from pair to pair.
        """
        for image, maps in pairs:
            yield self(image[None], maps[None])[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what it holds; nothing here."""


#: Refinements by name: called with the keywords of :func:`build_refinement`, each takes those that
#: it has a use for and gives a :class:`Refinement`; a new one is an entry here.
REFINEMENTS = Registry[Callable[..., Refinement | None]]("refinement")
REFINEMENTS.register("none")(lambda **_: None)


class PixelAdaptiveRefinement(nn.Module, Refinement):
    r"""Pixel-adaptive refinement: an iterated local average of the maps, weighted by colours.

    The PAR of `"Learning Affinity from Attention" <https://arxiv.org/abs/2203.02664>`_:

    .. math::
        A^{t+1}_i = \sum_{j \in \mathcal{N}(i)} \frac{w_{ij} + \lambda v_{ij}}{1 + \lambda} A^t_j,
        \quad
        w_{i \cdot} = \operatorname*{softmax}_{j} \Big( - \frac{1}{3} \sum_{c}
        \frac{(x_{jc} - x_{ic})^2}{(\tau \sigma_{ic})^2} \Big), \quad
        v_{i \cdot} = \operatorname*{softmax}_{j} \Big( - \frac{d_{ij}^2}{(\tau \sigma_d)^2} \Big)

    where :math:`\mathcal{N}(i)` joins the eight neighbours of every dilation, :math:`\sigma_{ic}`
    is the standard deviation of their colours, :math:`d_{ij}` their distance and :math:`\sigma_d`
    its standard deviation. Unlike the original the weights sum to one, so that maps keep their
    range. Borders are replicated. Arithmetic is in float32 or better, without gradients.

    With a :obj:`scale` below 1 the photo is scaled down first and the refined maps are scaled up
    again: the same dilations then reach further, at a fraction of the cost.

    Args:
        iterations (int): Number of averages. (default: :obj:`10`)
        dilations (sequence of int): Distances of the neighbours in pixels of the scaled photo.
            (default: :obj:`(1, 2, 4, 8, 12, 24)`)
        colour_scale (float): :math:`\tau`. (default: :obj:`0.3`)
        position_weight (float): :math:`\lambda`. (default: :obj:`0.01`)
        scale (float): Side of the photo that is worked on as a fraction of its own, in
            :math:`(0, 1]`. (default: :obj:`1.0`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, uint8 or in :math:`[0, 1]`, and maps
          :math:`(B, K, h, w)`, background among them; only the classes of these images need be
          there
        - **output:** maps :math:`(B, K, H, W)`
    """

    def __init__(
        self,
        iterations: int = 10,
        dilations: Sequence[int] = DILATIONS,
        colour_scale: float = 0.3,
        position_weight: float = 0.01,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if iterations < 1 or not dilations or min(dilations) < 1:
            raise InputError(
                f"iterations and every dilation must be at least 1, got {iterations} and "
                f"{tuple(dilations)}"
            )
        if not 0 < scale <= 1:
            raise InputError(f"'scale' of the refinement must lie in (0, 1], got {scale}")
        self.iterations = iterations
        self.scale = scale
        self.dilations = tuple(dilations)
        self.colour_scale = colour_scale
        self.position_weight = position_weight
        self.offsets = [
            (dy * dilation, dx * dilation)
            for dilation in self.dilations
            for dy, dx in product((-1, 0, 1), repeat=2)
            if dy or dx
        ]

    @torch.no_grad()
    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        """Resize :obj:`maps` to the images and refine them.

        Args:
            images (Tensor): Photographs.
            maps (Tensor): Non-negative class maps of any size.
        """
        _check(images, maps)
        dtype = torch.promote_types(maps.dtype, torch.float)
        height, width = (max(1, round(side * self.scale)) for side in images.shape[-2:])
        size = (height, width)
        refined = resize_maps(maps.to(dtype), size)
        # On a CPU one image at a time stays closer to the caches.
        batch = 1 if images.device.type == "cpu" else max(1, len(images))
        for some, some_maps in zip(images.split(batch), refined.split(batch), strict=True):
            pixels = _pixels(some, dtype)
            if self.scale != 1:
                pixels = F.adaptive_avg_pool2d(pixels, size)
            self._iterate(self.affinity(pixels), some_maps)
        if self.scale != 1:
            refined = resize_maps(refined, images.shape[-2:])
        return refined.to(maps.dtype)

    def affinity(self, images: Tensor) -> list[Tensor]:
        """Weight of each neighbour at every pixel: :math:`8D` tensors :math:`(B, 1, H, W)`."""
        padded = self._pad(images)  # [B, 3, H + 2p, W + 2p]
        difference = torch.empty_like(images)
        total, squares = torch.zeros_like(images), torch.zeros_like(images)
        for offset in self.offsets:
            torch.sub(self._shift(padded, offset), images, out=difference)
            total += difference
            squares.addcmul_(difference, difference)
        count = len(self.offsets)
        variance = squares.addcmul_(total, total, value=-1 / count).clamp_(min=0) / (count - 1)
        scale = variance.sqrt_().add_(1e-8).mul_(self.colour_scale * math.sqrt(3)).reciprocal_()

        # The softmax is written out, in place, on one tensor per neighbour: half the time of
        # torch.softmax on the CPU, as a plane is still in the cache when its next step comes, and
        # the allocator hands out the same warm pages for the next photo.
        planes = [torch.empty_like(images[:, :1]) for _ in self.offsets]
        largest = torch.full_like(planes[0], -math.inf)
        for plane, offset in zip(planes, self.offsets, strict=True):
            torch.sub(self._shift(padded, offset), images, out=difference)
            difference *= scale
            red, green, blue = difference.split(1, dim=1)
            torch.mul(red, red, out=plane).neg_()
            plane.addcmul_(green, green, value=-1).addcmul_(blue, blue, value=-1)
            torch.maximum(largest, plane, out=largest)
        norm = torch.zeros_like(largest)
        for plane in planes:
            norm += plane.sub_(largest).exp_()
        inverse = norm.mul(1 + self.position_weight).reciprocal_()
        for plane, position in zip(planes, self._position(), strict=True):
            plane.add_(norm, alpha=self.position_weight * position).mul_(inverse)
        return planes

    def _position(self) -> list[float]:
        distance = torch.tensor([math.hypot(*offset) for offset in self.offsets]).double()
        scaled = distance / (self.colour_scale * distance.std())
        return scaled.square().neg().softmax(dim=0).tolist()

    def _iterate(self, affinity: list[Tensor], maps: Tensor) -> None:
        # Shifted views of one padded copy: 8D fused multiply-adds and no unfolded tensor.
        for _ in range(self.iterations):
            padded = self._pad(maps)
            maps.zero_()
            for weight, offset in zip(affinity, self.offsets, strict=True):
                maps.addcmul_(self._shift(padded, offset), weight)

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (max(self.dilations),) * 4, mode="replicate")

    def _shift(self, padded: Tensor, offset: tuple[int, int]) -> Tensor:
        (dy, dx), margin = offset, max(self.dilations)
        height, width = (size - 2 * margin for size in padded.shape[-2:])
        return padded.narrow(-2, margin + dy, height).narrow(-1, margin + dx, width)

    def extra_repr(self) -> str:
        """Arguments shown by :func:`repr`."""
        return f"iterations={self.iterations}, dilations={self.dilations}, scale={self.scale}"


@REFINEMENTS.register("par")
def _par(
    iterations: int, dilations: Sequence[int], scale: float, **_: object
) -> PixelAdaptiveRefinement:
    return PixelAdaptiveRefinement(iterations, dilations, scale=scale)


class DenseCRF(Refinement):
    r"""Fully connected conditional random field, computed by :obj:`pydensecrf` (extra :obj:`crf`).

    The model of `"Efficient Inference in Fully Connected CRFs"
    <https://arxiv.org/abs/1210.5644>`_. The unary term is :math:`-\log A`. With
    :obj:`workers` the images are spread over processes, which changes no bit of the result; they
    start by *spawn*, so a script must keep its own work under :obj:`if __name__ == "__main__":`.

    Args:
        iterations (int): Mean-field iterations. (default: :obj:`10`)
        gaussian (tuple of float): Position scale and weight of the smoothness kernel.
            (default: :obj:`(3, 3)`)
        bilateral (tuple of float): Position scale, colour scale (0 to 255) and weight of the
            appearance kernel. (default: :obj:`(50, 5, 10)`)
        workers (int): Processes; 0 runs in this one. (default: :obj:`0`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, uint8 or in :math:`[0, 1]`, and maps
          :math:`(B, K, h, w)` in :math:`[0, 1]`, background among them
        - **output:** probabilities :math:`(B, K, H, W)`

    Raises:
        InputError: If :obj:`pydensecrf2` is not installed.
    """

    def __init__(
        self,
        iterations: int = 10,
        gaussian: tuple[float, float] = (3, 3),
        bilateral: tuple[float, float, float] = (50, 5, 10),
        workers: int = 0,
    ) -> None:
        if find_spec("pydensecrf") is None:
            raise InputError(
                "DenseCRF needs the package pydensecrf2: pip install 'pgnn-geo[crf]', or use "
                "PixelAdaptiveRefinement"
            )
        self.iterations = iterations
        self.gaussian = gaussian
        self.bilateral = bilateral
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, images: Tensor, maps: Tensor) -> Tensor:
        """Resize :obj:`maps` to the images and refine them."""
        _check(images, maps)
        refined = list(self.stream(zip(images, maps, strict=True)))
        return torch.stack(refined) if refined else resize_maps(maps, images.shape[-2:])

    def stream(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Refine pairs of an image :math:`(3, H, W)` and maps :math:`(K, h, w)`, in order.

        Sizes may differ from pair to pair; at most two pairs per worker are held at once.
        """
        waiting: deque[tuple[Future[NDArray[np.float32]], Tensor]] = deque()
        for image, maps in pairs:
            _check(image[None], maps[None])
            pixels = image if image.dtype == torch.uint8 else (image * 255).round().byte()
            resized = resize_maps(maps.detach().float()[None], image.shape[-2:])[0]
            job = (
                np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()),
                np.ascontiguousarray(resized.cpu().numpy()),
                self.iterations,
                self.gaussian,
                self.bilateral,
            )
            if self.workers == 0:
                yield torch.from_numpy(_dense_crf(*job)).to(maps)
                continue
            if self._pool is None:
                self._pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))
            waiting.append((self._pool.submit(_dense_crf, *job), maps))
            if len(waiting) >= 2 * self.workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def close(self) -> None:
        """End the worker processes; the next call starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(iterations={self.iterations}, gaussian={self.gaussian}, "
            f"bilateral={self.bilateral}, workers={self.workers})"
        )


@REFINEMENTS.register("crf")
def _crf(iterations: int, workers: int, **_: object) -> DenseCRF:
    return DenseCRF(iterations, workers=workers)


def build_refinement(
    name: str,
    iterations: int = 10,
    dilations: Sequence[int] = HALF_SIZE_DILATIONS,
    workers: int = 0,
    scale: float = HALF_SIZE,
) -> Refinement | None:
    """Return the refinement of a name; :obj:`None` for :obj:`"none"`.

    Args:
        name (str): :obj:`"none"`, :obj:`"par"` (:class:`PixelAdaptiveRefinement`), :obj:`"crf"`
            (:class:`DenseCRF`) or another entry of :obj:`REFINEMENTS`.
        iterations (int): Iterations. (default: :obj:`10`)
        dilations (sequence of int): Distances of the neighbours in the first.
            (default: :obj:`(1, 2, 4, 8, 12)`)
        workers (int): Processes of the second. (default: :obj:`0`)
        scale (float): Size at which the first works. (default: :obj:`0.5`)

    Raises:
        InputError: If there is no such refinement, an argument is out of range, or the package
            that it needs is not installed.
    """
    build = REFINEMENTS[name]
    return build(iterations=iterations, dilations=dilations, workers=workers, scale=scale)


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps :math:`(B, K, h, w)` bilinearly to :obj:`size`; always a new tensor."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.clone(memory_format=torch.contiguous_format)
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False).contiguous()


def _pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images as floats in [0, 1]."""
    pixels = images.to(dtype)
    return pixels.div_(255) if images.dtype == torch.uint8 else pixels


def _result(future: "Future[NDArray[np.float32]]", like: Tensor) -> Tensor:
    return torch.from_numpy(future.result()).to(like)


def _check(images: Tensor, maps: Tensor) -> None:
    if images.dim() != 4 or images.size(1) != 3 or maps.dim() != 4 or len(images) != len(maps):
        raise InputError(
            f"want images [B, 3, H, W] and maps [B, K, h, w], got {list(images.shape)} and "
            f"{list(maps.shape)}"
        )


def _dense_crf(
    image: NDArray[np.uint8],
    maps: NDArray[np.float32],
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
) -> NDArray[np.float32]:
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    labels, height, width = maps.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(maps)))
    crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
    crf.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=image, compat=bilateral[2])
    return np.array(crf.inference(iterations), dtype=np.float32).reshape(labels, height, width)
