"""An embedding of the class of a node (Eq. 4)."""

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.graph.checks import describe


class ClassEmbedding(nn.Module):
    r"""The class embedding (Eq. 4) of `"Maximize the Exploration of Congeneric Semantics for Weakly
    Supervised Semantic Segmentation" <https://arxiv.org/abs/2110.03982>`_: one learned vector for
    each foreground class, and one for the background in row 0.

    .. math::
        \mathbf{e}_{\alpha} = \mathbf{T}_{c_{\alpha}}, \quad
        \mathbf{T} \in \mathbb{R}^{(K+1) \times C}

    Args:
        num_classes (int): Number of foreground classes :math:`K`.
        dim (int): Size of each embedding :math:`C`.

    Shapes:
        - **input:** node classes :math:`(|\mathcal{V}|)` in :math:`\{0, \ldots, K\}`
        - **output:** :math:`(|\mathcal{V}|, C)`
    """

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        if num_classes < 1 or dim < 1:
            raise InputError(
                f"`num_classes`, `dim`: expected positive numbers, got {num_classes} and {dim}"
            )
        self.num_classes = num_classes
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(num_classes + 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows from a normal distribution, as :class:`torch.nn.Embedding` does."""
        nn.init.normal_(self.weight)

    def forward(self, node_class: Tensor) -> Tensor:
        """Return the row of each node's class.

        Args:
            node_class (torch.Tensor): Class of each node, 0 for background.

        Raises:
            InputError: If the classes are not integers of one dimension in :math:`0, ..., K`. The
                range is checked on the CPU only; other devices check it in their own kernel.
        """
        if node_class.dim() != 1 or node_class.dtype not in (torch.long, torch.int):
            raise InputError(f"`node_class`: expected integers [V], got {describe(node_class)}")
        # Reading the range back from an accelerator would make the host wait.
        if node_class.is_cpu and node_class.numel() and not torch.compiler.is_compiling():
            low, high = (int(v) for v in node_class.aminmax())
            if low < 0 or high > self.num_classes:
                raise InputError(
                    f"`node_class`: expected 0 (background) to {self.num_classes}, "
                    f"got {low} to {high}"
                )
        return nn.functional.embedding(node_class, self.weight)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.num_classes}, {self.dim})"
