r"""Features whose channels have been decorrelated."""

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import Features


class Whitening(nn.Module):
    r"""An affine map of features after which none of their directions outweighs another.

    .. math::
        \mathbf{y} = (\mathbf{\Lambda} + \epsilon \bar{\lambda} \mathbf{I})^{-1/2}
        \mathbf{V}^{\top} (\mathbf{x} - \boldsymbol{\mu})

    with mean :math:`\boldsymbol{\mu}` and covariance :math:`\mathbf{V} \mathbf{\Lambda}
    \mathbf{V}^{\top}` over all positions of all photos, and :math:`\bar{\lambda}` the mean
    eigenvalue, see :meth:`fit`. The channels of a small network, or of one that was trained on a
    few photos from random weights, are nearly collinear: any two positions look alike until that is
    taken away. Before it is fitted it changes nothing.

    Args:
        channels (int): Number of channels :math:`C`.

    Shapes:
        - **features:** :math:`(M, C, h, w)`
        - **output:** :math:`(M, C, h, w)`
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(channels))
        self.transform = nn.Buffer(torch.eye(channels))

    @classmethod
    @torch.no_grad()
    def fit(
        cls, features: Features, ridge: float = 0.1, device: torch.device | str = "cpu"
    ) -> "Whitening":
        r"""Return the whitening of features, on the CPU.

        Args:
            features (Features): Features :math:`(M, C, h, w)`.
            ridge (float): :math:`\epsilon`, positive. (default: :obj:`0.1`)
            device (torch.device or str): Where the covariance is summed. (default: :obj:`"cpu"`)

        Raises:
            InputError: If :obj:`ridge` is not positive, or all features are the same.
        """
        if ridge <= 0:
            raise InputError(f"'ridge' of the whitening must be positive, got {ridge}.")
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
        fitted = cls(channels)
        fitted.mean.copy_(mean)
        fitted.transform.copy_((vectors * scale).T)
        return fitted

    def forward(self, features: Tensor) -> Tensor:
        """Return the whitened features."""
        centred = features - self.mean[:, None, None]
        return torch.einsum("dc,nchw->ndhw", self.transform, centred)

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"{len(self.mean)}"


class WhitenedFeatures:
    """A view of features through a :class:`Whitening`, on its device.

    Args:
        features (Features): Features :math:`(M, C, h, w)`.
        whitening (Whitening): What they go through when they are read.
    """

    def __init__(self, features: Features, whitening: Whitening) -> None:
        self.features, self.whitening = features, whitening

    def __len__(self) -> int:
        return len(self.features)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape :obj:`(M, C, h, w)`."""
        return self.features.shape

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return whitened features :obj:`[n, C, h, w]`."""
        whitened: Tensor = self.whitening(self.features[indices].to(self.whitening.mean.device))
        return whitened
