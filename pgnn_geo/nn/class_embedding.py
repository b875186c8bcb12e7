"""The class of a node as an embedding (Eq. 4), and the classes of two nodes as a relation."""

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
        check_classes(node_class, self.num_classes)
        return nn.functional.embedding(node_class, self.weight)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.num_classes}, {self.dim})"


class ClassRelation(nn.Module):
    r"""What a node's class makes of another's: a bias on their attention logit for each head.

    .. math::
        b_{\alpha\beta} = \begin{cases}
        s & \text{if } c_{\alpha} = c_{\beta} \neq 0 \\
        t & \text{if } c_{\alpha} \neq 0, \, c_{\beta} = 0 \\
        u & \text{if } c_{\alpha} = 0, \, c_{\beta} = 0 \\
        0 & \text{else}
        \end{cases}

    It is the product of an embedding of either class, :math:`b_{\alpha\beta} =
    \mathbf{q}_{\alpha}^{\top} \mathbf{k}_{\beta}` with :math:`K + 1` channels, and the same when
    foreground classes are renamed: nodes can tell their own class from another, but nothing behind
    the attention can tell *which* class it is. A free embedding at the same place gives that away,
    since its queries select features by class. The biases start at zero.

    Args:
        num_classes (int): Number of foreground classes :math:`K`.
        heads (int): Number of attention heads :math:`H`.

    Shapes:
        - **input:** node classes :math:`(|\mathcal{V}|)` in :math:`\{0, \ldots, K\}`
        - **output:** :math:`(|\mathcal{V}|, H, K + 1)`
    """

    def __init__(self, num_classes: int, heads: int):
        super().__init__()
        if num_classes < 1:
            raise InputError(f"`num_classes`: expected a positive number, got {num_classes}")
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.empty(3, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all biases to zero."""
        nn.init.zeros_(self.weight)

    def query(self, node_class: Tensor) -> Tensor:
        """Return the classes' part of the queries.

        Args:
            node_class (torch.Tensor): Class of each node, 0 for background.

        Raises:
            InputError: As :class:`ClassEmbedding` does.
        """
        same, background_of_other, background = self.weight.unsqueeze(2)  # [H, 1] each
        code = self.key(node_class)  # [V, H, K + 1]
        foreground = (node_class > 0).view(-1, 1, 1)
        own = code * torch.where(foreground, same, background)
        zero = torch.zeros_like(node_class)
        return own + self.key(zero) * (foreground * background_of_other)

    def key(self, node_class: Tensor) -> Tensor:
        """Return the classes' part of the keys (see :meth:`query`)."""
        check_classes(node_class, self.num_classes)
        code = node_class.unsqueeze(1) == torch.arange(
            self.num_classes + 1, device=node_class.device
        )
        return code.to(self.weight.dtype).unsqueeze(1).expand(-1, self.weight.size(1), -1)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.num_classes}, heads={self.weight.size(1)})"


def check_classes(node_class: Tensor, num_classes: int) -> None:
    """Raise unless classes are integers [V] in 0, ..., K (range: on the CPU only)."""
    if node_class.dim() != 1 or node_class.dtype not in (torch.long, torch.int):
        raise InputError(f"`node_class`: expected integers [V], got {describe(node_class)}")
    # Reading the range back from an accelerator would make the host wait.
    if node_class.is_cpu and node_class.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in node_class.aminmax())
        if low < 0 or high > num_classes:
            raise InputError(
                f"`node_class`: expected 0 (background) to {num_classes}, got {low} to {high}"
            )
