r"""Features whose channels have been decorrelated."""

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank


class WhitenedFeatures:
    r"""A view of a :class:`FeatureBank` in which no direction of the features outweighs another.

    .. math::
        \mathbf{y} = (\mathbf{\Lambda} + \epsilon \bar{\lambda} \mathbf{I})^{-1/2}
        \mathbf{V}^{\top} (\mathbf{x} - \boldsymbol{\mu})

    with mean :math:`\boldsymbol{\mu}` and covariance :math:`\mathbf{V} \mathbf{\Lambda}
    \mathbf{V}^{\top}` over all positions of all photos, and :math:`\bar{\lambda}` the mean
    eigenvalue. The channels of a network that was trained on a few photos from random weights are
    nearly collinear: any two positions look alike until that is taken away.

    Args:
        features (FeatureBank): Features :math:`(M, C, h, w)`.
        ridge (float): :math:`\epsilon`, positive. (default: :obj:`0.1`)
        device (torch.device or str): Where the covariance is summed. (default: :obj:`"cpu"`)

    Raises:
        InputError: If :obj:`ridge` is not positive, or all features are the same.
    """

    def __init__(
        self, features: FeatureBank, ridge: float = 0.1, device: torch.device | str = "cpu"
    ) -> None:
        if ridge <= 0:
            raise InputError(f"'ridge' of the whitening must be positive, got {ridge}.")
        self.features = features
        channels = features.shape[1]
        count = 0
        total = torch.zeros(channels, dtype=torch.double, device=device)
        products = torch.zeros(channels, channels, dtype=torch.double, device=device)
        for photos in torch.arange(len(features)).split(16):
            x = features[photos].to(device).transpose(0, 1).flatten(1)  # [C, b * h * w]
            total += x.sum(dim=1, dtype=torch.double)
            products += (x @ x.T).double()
            count += x.size(1)
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        values = values.clamp(min=0)
        if values.sum() == 0:
            raise InputError("The features cannot be whitened: they are all the same everywhere.")
        scale = (values + ridge * values.mean()).rsqrt()
        self.mean = mean.float().cpu()  # [C]
        self.transform = (vectors * scale).T.float().cpu()  # [C, C]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape :obj:`(M, C, h, w)`."""
        return self.features.shape

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return whitened features :obj:`[n, C, h, w]`."""
        centred = self.features[indices] - self.mean[:, None, None]
        return torch.einsum("dc,nchw->ndhw", self.transform, centred)
