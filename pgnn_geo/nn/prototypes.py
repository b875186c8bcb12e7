"""Class prototypes: the linear form of congeneric propagation over a whole data set."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.nn.propagation import centered


class ClassPrototypes(nn.Module):
    r"""One prototype per class, the score-weighted sum of all its features, less a background one.

    With :math:`\mathbf{u}` the centered unit features of all positions, :math:`A` the attention
    maps of the tagged classes and :math:`\hat{\cdot}` scaling to unit length,

    .. math::
        \mathbf{p}_c = \widehat{\sum_{\beta : A_{\beta c} > \tau} A_{\beta c} \, \mathbf{u}_{\beta}}
        - \widehat{\sum_{\beta} (1 - \max_k A_{\beta k})^2 \, \mathbf{u}_{\beta}}, \qquad
        s_{\alpha c} = \mathrm{ReLU}(\langle \mathbf{u}_{\alpha}, \mathbf{p}_c \rangle).

    It takes two streaming passes: :meth:`update_mean` over the features gives the mean feature
    :math:`\boldsymbol{\mu}` (unless :obj:`mean` is given), then :meth:`update` gives the sums.
    Sums over photos are in float64, so shards that are merged give the float32 prototypes of a
    single pass. Features averaged with those of the mirrored photo make better prototypes;
    averaging them is up to the caller.

    Args:
        num_classes (int): The number of classes :math:`K`.
        channels (int): The number of feature channels :math:`C`.
        threshold (float): The score :math:`\tau` above which a position counts for a class.
            (default: :obj:`0.3`)
        mean (torch.Tensor, optional): The mean feature of shape :math:`(C)`, if it is known.
            (default: :obj:`None`)

    Shapes:
        - **features:** :math:`(B, C, h, w)` of images or :math:`(|\mathcal{V}|, C)` of nodes
        - **scores:** :math:`(B, K, h, w)` or :math:`(|\mathcal{V}|, K)`, in [0, 1]
        - **tags:** :math:`(B, K)` or :math:`(|\mathcal{V}|, K)` of zeros and ones
        - **prototypes:** :math:`(K, C)`
    """

    feature_sum: Tensor
    feature_count: Tensor
    class_sum: Tensor
    background_sum: Tensor
    position_count: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int,
        threshold: float = 0.3,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        if mean is not None and mean.shape != (channels,):
            raise InputError(f"mean: got shape {tuple(mean.shape)}, want ({channels},)")
        self.num_classes = num_classes
        self.channels = channels
        self.threshold = threshold
        shapes: dict[str, tuple[int, ...]] = {
            "feature_sum": (channels,),
            "feature_count": (),
            "class_sum": (num_classes, channels),
            "background_sum": (channels,),
            "position_count": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        if mean is not None:
            self.feature_sum.copy_(mean)
            self.feature_count.fill_(1)

    @property
    def mean(self) -> Tensor:
        r"""The mean feature :math:`\boldsymbol{\mu}` of shape :math:`(C)`, float32."""
        if self.feature_count == 0:
            raise InputError("no mean feature yet: call update_mean on all features, or pass mean")
        return (self.feature_sum / self.feature_count).float()

    @torch.no_grad()
    def update_mean(self, features: Tensor) -> None:
        """Add a batch of features to the mean (first pass).

        Raises:
            InputError: If the sums of the second pass have begun, or a feature is not finite.
        """
        if self.position_count > 0:
            raise InputError("update_mean after update: the sums hold features less the old mean")
        self._check("features", features, self.channels)
        # Within a photo in single precision: all in double took as long as the second pass.
        dtype = torch.promote_types(features.dtype, torch.float32)
        total = _rows(features).sum(dim=1, dtype=dtype).sum(dim=0, dtype=torch.float64)
        _check_finite("features", total)
        self.feature_sum += total
        self.feature_count += features.numel() // self.channels

    @torch.no_grad()
    def update(self, features: Tensor, scores: Tensor, tags: Tensor) -> None:
        """Add a batch of features, weighted by the scores of the tagged classes (second pass).

        Raises:
            InputError: If shapes disagree, scores leave [0, 1], a feature is not finite, or there
                is no mean feature yet.
        """
        self._check("features", features, self.channels)
        self._check("scores", scores, self.num_classes)
        if scores.shape[2:] != features.shape[2:] or scores.size(0) != features.size(0):
            raise InputError(
                f"scores: got shape {tuple(scores.shape)}, want the images and the positions of "
                f"the features, {tuple(features.shape)}"
            )
        if tags.shape != scores.shape[:2]:
            raise InputError(f"tags: got shape {tuple(tags.shape)}, want {tuple(scores.shape[:2])}")
        if scores.numel() and not (scores.amin() >= 0 and scores.amax() <= 1):
            raise InputError(
                f"scores: got values from {scores.amin():.3g} to {scores.amax():.3g}, want [0, 1]: "
                "divide each map by its maximum"
            )
        x, length = centered(_rows(features), self.mean)  # [B, hw, C], [B, hw, 1]
        tags = tags[None] if tags.dim() == scores.dim() else tags[:, None]  # of nodes, of images
        scores = (_rows(scores) * tags).to(x)  # [B, hw, K]
        background = (1 - scores.amax(dim=2, keepdim=True)).square()  # [B, hw, 1]
        weights = torch.cat([scores * (scores > self.threshold), background], dim=2)
        # Dividing the weights by the lengths spares a pass over the features.
        sums = ((weights / length).mT @ x).double().sum(dim=0)  # [K + 1, C]
        _check_finite("features", sums)
        self.class_sum += sums[:-1]
        self.background_sum += sums[-1]
        self.position_count += length.numel()

    @torch.no_grad()
    def merge(self, other: "ClassPrototypes") -> None:
        """Add the sums of another shard: its mean in the first pass, its prototypes in the second.

        Raises:
            InputError: If the two differ in size, or in the mean feature once the second pass has
                begun in either.
        """
        if self.class_sum.shape != other.class_sum.shape:
            raise InputError(
                f"cannot merge prototypes of shape {tuple(other.class_sum.shape)} into "
                f"{tuple(self.class_sum.shape)}"
            )
        if self.position_count + other.position_count.to(self.position_count) == 0:
            names = ["feature_sum", "feature_count"]
        elif torch.equal(self.mean, other.mean.to(self.mean)):
            names = ["class_sum", "background_sum", "position_count"]
        else:
            raise InputError("shards differ in the mean feature: merge it before calling update")
        for name in names:
            buffer = getattr(self, name)
            buffer += getattr(other, name).to(buffer)

    @torch.no_grad()
    def all_reduce(self) -> None:
        """Sum over all ranks, once at the end of each pass; does nothing outside a process group.

        Raises:
            InputError: If the ranks differ in the mean feature in the second pass.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        dist.all_reduce(self.position_count)
        if self.position_count == 0:
            dist.all_reduce(self.feature_sum)
            dist.all_reduce(self.feature_count)
            return
        low, high = self.mean, self.mean
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        if not torch.equal(low, high):
            raise InputError("ranks differ in the mean feature: call all_reduce before update too")
        dist.all_reduce(self.class_sum)
        dist.all_reduce(self.background_sum)

    def prototypes(self) -> Tensor:
        r"""The prototypes of shape :math:`(K, C)`, float32; a class without evidence is zero."""
        background = F.normalize(self.background_sum, dim=0)
        seen = self.class_sum.norm(dim=1, keepdim=True) > 0
        return ((F.normalize(self.class_sum, dim=1) - background) * seen).float()

    def score(self, features: Tensor) -> Tensor:
        r"""Compare every position with every prototype.

        From :math:`(B, C, h, w)` to :math:`(B, K, h, w)`, or from nodes :math:`(|\mathcal{V}|, C)`
        to :math:`(|\mathcal{V}|, K)`. The scores are rectified but not divided by their maximum.
        Differentiable in the features.
        """
        self._check("features", features, self.channels)
        x, length = centered(_rows(features), self.mean)
        scores = (x @ self.prototypes().to(x).t() / length).relu()  # [B, hw, K]
        return scores[0] if features.dim() == 2 else scores.mT.unflatten(2, features.shape[2:])

    @staticmethod
    def _check(name: str, value: Tensor, channels: int) -> None:
        if value.dim() not in (2, 4) or value.size(1) != channels:
            raise InputError(
                f"{name}: got shape {tuple(value.shape)}, want [B, {channels}, h, w] or "
                f"[V, {channels}]"
            )

    def extra_repr(self) -> str:
        """The sizes that the prototypes were made with."""
        return f"{self.num_classes}, {self.channels}, threshold={self.threshold}"


def _rows(x: Tensor) -> Tensor:
    """Return maps :obj:`[B, C, h, w]` as :obj:`[B, h w, C]`, nodes :obj:`[V, C]` as one image."""
    return x[None] if x.dim() == 2 else x.flatten(2).mT


def _check_finite(name: str, total: Tensor) -> None:
    if not bool(total.isfinite().all()):
        raise InputError(f"{name}: got NaN or infinite values; they would spoil all sums")
