"""Soft-complementary loss: what the map covers is needed, what it leaves out is not."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.losses.reduction import divisor

MODES = ("stable", "paper", "erase")
THRESHOLDS = ("soft", "hard")


class SoftComplementaryTerms(NamedTuple):
    """The terms of :class:`SoftComplementaryLoss`: the weighted sum, then each term unweighted."""

    total: Tensor
    destroy: Tensor
    preserve: Tensor
    area: Tensor
    smoothness: Tensor
    classification: Tensor
    backbone_classification: Tensor


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Run modules as fixed functions: no gradient to their parameters, no change of their buffers.

    Inside, parameters take no gradient and the modules are in evaluation mode; gradients still flow
    through to the inputs. Everything is put back on exit, before the backward pass.

    Args:
        *modules (torch.nn.Module): The modules to freeze.
    """
    parameters = {p for m in modules for p in m.parameters() if p.requires_grad}
    training = [m for root in modules for m in root.modules() if m.training]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for module in training:
            module.training = False
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


class SoftComplementaryLoss(nn.Module):
    r"""The soft-complementary loss: what a map covers is needed, what it leaves out is not.

    Eq. 5 to 10 of `"Maximize the Exploration of Congeneric Semantics for Weakly Supervised Semantic
    Segmentation" <https://arxiv.org/abs/2110.03982>`_:

    .. math::
        \mathcal{L} = \lambda_1 \mathcal{L}_{\mathrm{destroy}} + \lambda_2
        \mathcal{L}_{\mathrm{preserve}} + \lambda_a \mathcal{L}_{\mathrm{area}} + \lambda_3
        \mathrm{TV}(A) + \lambda_4 (\mathcal{L}_c + \lambda_b \mathcal{L}_c^{\mathrm{backbone}})

    The map :math:`M = \max_c T(A_c)` over the classes asked for, with :math:`T(A) =
    \sigma(\omega (A - \sigma_0))`, splits the features into the erased :math:`F (1 - M)` and the
    kept :math:`F M`, which are classified again: :math:`p^-` and :math:`p^+` are the probabilities
    of the classes asked for. Averaged over the pairs of image and class:

    ========== ============================ ====================== =============================
    mode       destroy                      preserve               gradient of the two passes
    ========== ============================ ====================== =============================
    ``stable`` :math:`-\log(1 - p^-)`       :math:`-\log p^+`      attention map only
    ``paper``  :math:`\log p^-`             :math:`-\log p^+`      attention map only
    ``erase``  :math:`-\log p^-`            none                   features and classifier
    ========== ============================ ====================== =============================

    ``paper`` has the printed signs. It has no lower bound: :math:`\log p^-` falls for ever as the
    erased class becomes impossible, and without an area term :math:`A = 1` is a minimum. ``erase``
    is adversarial erasing: :math:`M` comes from :obj:`reference`, the previous epoch's maps, and
    the network has to find the class again in what they leave.

    TV is the isotropic total variation :math:`\frac{1}{hw} \sum_{ij} \sqrt{(A_{i+1,j} - A_{ij})^2 +
    (A_{i,j+1} - A_{ij})^2 + \epsilon}` and the area is the mean of :math:`A`, both averaged over
    the maps of the tagged classes. :math:`\mathcal{L}_c` is the multi-label soft-margin loss. All
    terms are computed in float32 (or float64), whatever the autocast.

    Let the gradient pass through the maximum that the maps are divided by: with a detached maximum
    the complementary passes ran away within an epoch.

    Args:
        mode (str): :obj:`"stable"`, :obj:`"paper"` or :obj:`"erase"`. (default: :obj:`"stable"`)
        threshold (str): :obj:`"soft"`, or :obj:`"hard"` for the step :math:`A > \sigma_0`, through
            which no gradient passes: of use in ``erase`` only. (default: :obj:`"soft"`)
        omega (float): The steepness of the soft threshold. (default: :obj:`10.0`)
        sigma (float): The threshold :math:`\sigma_0`; the paper gives no value. (default:
            :obj:`0.5`)
        weights (tuple of float): :math:`\lambda_1` to :math:`\lambda_4`: destroy, preserve, TV,
            classification. A pass of weight zero is not run. (default: :obj:`(1, 1, 0.8, 1)`)
        area (float, optional): The weight :math:`\lambda_a`. (default: :obj:`0.05` in ``stable``,
            :obj:`0.0` in the other modes)
        backbone_weight (float): The weight :math:`\lambda_b`. (default: :obj:`0.4`)
        warmup (int): The number of first epochs without destroy, preserve and area. (default:
            :obj:`1`)
        eps (float): The constant inside the root of TV. (default: :obj:`1e-6`)
        average (callable, optional): What becomes of the number of tags that sums over them are
            divided by, see :class:`SeedingLoss`. (default: :obj:`None`)

    Shapes:
        - **attention:** :math:`(B, K, h, w)`, in [0, 1]
        - **logits:**, **backbone_logits:**, **tags:**, **asked:** :math:`(B, K)`
        - **features:** :math:`(B, C, h, w)`
        - **output:** seven scalars, :class:`SoftComplementaryTerms`
    """

    def __init__(
        self,
        mode: str = "stable",
        threshold: str = "soft",
        omega: float = 10.0,
        sigma: float = 0.5,
        weights: Sequence[float] = (1.0, 1.0, 0.8, 1.0),
        area: float | None = None,
        backbone_weight: float = 0.4,
        warmup: int = 1,
        eps: float = 1e-6,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise InputError(f"mode={mode!r}: want one of {', '.join(MODES)}")
        if threshold not in THRESHOLDS:
            raise InputError(f"threshold={threshold!r}: want one of {', '.join(THRESHOLDS)}")
        if len(weights) != 4 or min(weights) < 0:
            raise InputError(f"weights={tuple(weights)}: want four numbers of zero or more")
        if eps <= 0:
            raise InputError(f"eps={eps}: want more than 0, the root has no gradient at 0")
        self.mode = mode
        self.threshold = threshold
        self.omega = omega
        self.sigma = sigma
        self.weights = tuple(weights)
        self.area = (0.05 if mode == "stable" else 0.0) if area is None else area
        self.backbone_weight = backbone_weight
        self.warmup = warmup
        self.eps = eps
        self.average = average

    def forward(
        self,
        attention: Tensor,
        logits: Tensor,
        tags: Tensor,
        *,
        backbone_logits: Tensor | None = None,
        features: Tensor | None = None,
        classify: Callable[[Tensor], Tensor] | None = None,
        modules: Sequence[nn.Module] = (),
        reference: Tensor | None = None,
        asked: Tensor | None = None,
        epoch: int | None = None,
    ) -> SoftComplementaryTerms:
        r"""Compute all terms.

        Args:
            attention (torch.Tensor): The attention maps :math:`A`.
            logits (torch.Tensor): The class logits.
            tags (torch.Tensor): The image tags.
            backbone_logits (torch.Tensor, optional): The logits of the head before the graph.
                (default: :obj:`None`)
            features (torch.Tensor, optional): The features that are masked. Needed after the
                warm-up, as is :obj:`classify`. (default: :obj:`None`)
            classify (callable, optional): Maps masked features to logits.
                (default: :obj:`None`)
            modules (list of torch.nn.Module): What :obj:`classify` runs through; frozen in
                ``stable`` and ``paper``. May be left out where :obj:`classify` is itself a module.
                (default: :obj:`()`)
            reference (torch.Tensor, optional): The previous epoch's maps, for ``erase``.
                (default: :obj:`None`)
            asked (torch.Tensor, optional): The tagged classes that the passes mask and ask for, for
                example the group's class alone, multi-hot. By default all tags: one mask for each
                image, the union of its classes. (default: :obj:`None`)
            epoch (int, optional): The current epoch, from 0; :obj:`None` is past the warm-up.
                (default: :obj:`None`)

        Raises:
            InputError: If shapes disagree or an argument that the mode needs is missing.
        """
        if attention.dim() != 4 or not attention.shape[:2] == logits.shape == tags.shape:
            raise InputError(
                f"attention {tuple(attention.shape)}, logits {tuple(logits.shape)} and tags "
                f"{tuple(tags.shape)}: want [B, K, h, w], [B, K] and [B, K]"
            )
        maps, logits = _wide(attention), _wide(logits)
        tags = tags.to(logits.dtype)

        zero = logits.new_zeros(())
        destroy = preserve = area = zero
        if epoch is None or epoch >= self.warmup:
            wanted = tags if asked is None else tags * asked.to(tags)
            area = self._mean_over(maps.mean(dim=(2, 3)), tags)
            destroy, preserve = self._complement(
                maps, wanted, features, classify, modules, reference
            )

        smoothness = self._mean_over(self.total_variation(maps), tags)
        classification = F.multilabel_soft_margin_loss(logits, tags)
        backbone = zero
        if backbone_logits is not None:
            backbone = F.multilabel_soft_margin_loss(_wide(backbone_logits), tags)

        w = self.weights
        total = w[0] * destroy + w[1] * preserve + self.area * area + w[2] * smoothness
        total = total + w[3] * (classification + self.backbone_weight * backbone)
        return SoftComplementaryTerms(
            total, destroy, preserve, area, smoothness, classification, backbone
        )

    def apply_threshold(self, attention: Tensor) -> Tensor:
        r"""The thresholded map :math:`T(A)` (Eq. 5)."""
        if self.threshold == "hard":
            return (attention > self.sigma).to(attention.dtype)
        return torch.sigmoid(self.omega * (attention - self.sigma))

    def total_variation(self, attention: Tensor) -> Tensor:
        r"""The total variation of each map (Eq. 9): :math:`(B, K, h, w)` to :math:`(B, K)`."""
        down = F.pad(attention.diff(dim=2), (0, 0, 0, 1))  # no difference across the border
        right = F.pad(attention.diff(dim=3), (0, 1, 0, 0))
        return (down.square() + right.square() + self.eps).sqrt().mean(dim=(2, 3))

    def _complement(
        self,
        maps: Tensor,
        wanted: Tensor,
        features: Tensor | None,
        classify: Callable[[Tensor], Tensor] | None,
        modules: Sequence[nn.Module],
        reference: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if not any(self.weights[:2]):
            return maps.new_zeros(()), maps.new_zeros(())
        erase = self.mode == "erase"
        if features is None or classify is None:
            raise InputError("features and classify are needed after the warm-up")
        if erase:
            if reference is None:
                raise InputError("mode 'erase' needs reference, the previous epoch's maps")
            maps = _wide(reference.detach())
        else:
            if not modules and isinstance(classify, nn.Module):
                modules = (classify,)
            if not modules:
                raise InputError("modules is needed: what classify runs through, to be frozen")
            features = features.detach()
        if maps.shape[2:] != features.shape[2:] or maps.shape[:2] != wanted.shape:
            raise InputError(
                f"maps of shape {tuple(maps.shape)} cannot mask features of shape "
                f"{tuple(features.shape)}"
            )
        # T rises with A, so the threshold of the largest score is the largest threshold.
        mask = self.apply_threshold((maps * wanted[:, :, None, None]).amax(dim=1, keepdim=True))

        destroy = preserve = maps.new_zeros(())
        with frozen(*(() if erase else modules)):
            if self.weights[0]:
                erased = _wide(classify(features * (1 - mask).to(features.dtype)))
                # Logarithms of the logistic function, in the form that cannot overflow.
                if self.mode == "stable":
                    destroy = self._mean_over(F.softplus(erased), wanted)
                elif self.mode == "paper":
                    destroy = self._mean_over(-F.softplus(-erased), wanted)
                else:
                    destroy = self._mean_over(F.softplus(-erased), wanted)
            if self.weights[1] and not erase:
                kept = _wide(classify(features * mask.to(features.dtype)))
                preserve = self._mean_over(F.softplus(-kept), wanted)
        return destroy, preserve

    def _mean_over(self, value: Tensor, where: Tensor) -> Tensor:
        return (value * where).sum() / divisor(where.sum(), self.average)

    def extra_repr(self) -> str:
        """The mode, the threshold and the weights."""
        return (
            f"mode={self.mode!r}, threshold={self.threshold!r}, omega={self.omega}, "
            f"sigma={self.sigma}, weights={self.weights}, area={self.area}, warmup={self.warmup}"
        )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
