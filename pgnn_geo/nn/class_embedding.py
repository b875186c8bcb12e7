"""The class of a node as an embedding (Eq. 4), and the classes of two nodes as a relation."""

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.nn import checks


class ClassEmbedding(nn.Module):
    r"""The class embedding (Eq. 4) of `"Maximize the Exploration of Congeneric Semantics for Weakly
    Supervised Semantic Segmentation" <https://arxiv.org/abs/2110.03982>`_: one learned vector for
    each foreground class, and one for the background in row 0, added to the nodes.

    .. math::
        \mathbf{x}^{\prime}_{\alpha,u} = \mathbf{x}_{\alpha,u} + \mathbf{T}_{c_{\alpha}}, \quad
        \mathbf{T} \in \mathbb{R}^{(K+1) \times C}

    Where classes come from image tags, a classifier can read them off such nodes;
    :class:`ClassRelation` gives nothing away.

    Args:
        num_classes (int): Number of foreground classes :math:`K`.
        channels (int): Channels of the nodes :math:`C`.

    Shapes:
        - **input:** nodes :math:`(|\mathcal{V}|, C, *)`; their classes :math:`(|\mathcal{V}|)` in
          :math:`\{0, \ldots, K\}`
        - **output:** nodes :math:`(|\mathcal{V}|, C, *)`
    """

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        if num_classes < 1 or channels < 1:
            raise InputError(
                "`num_classes`, `channels`: expected positive numbers, got "
                f"{num_classes} and {channels}"
            )
        self.num_classes = num_classes
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(num_classes + 1, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows from a normal distribution, as :class:`torch.nn.Embedding` does."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor, node_class: Tensor) -> Tensor:
        """Add the row of each node's class.

        Args:
            x (torch.Tensor): The nodes.
            node_class (torch.Tensor): The class of each node, 0 for background.

        Raises:
            InputError: If the classes are not integers, one for each node.
        """
        checks.classes(node_class, x)
        row = nn.functional.embedding(node_class, self.weight)  # [V, C]
        return x + row.view(*row.shape, *[1] * (x.dim() - 2))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.num_classes}, {self.channels})"


class ClassRelation(nn.Module):
    r"""What a node's class makes of another's: a bias on their attention logit for each head.

    .. math::
        b_{\alpha\beta} = \begin{cases}
        s & \text{if } c_{\alpha} = c_{\beta} \neq 0 \\
        t & \text{if } c_{\alpha} \neq 0, \, c_{\beta} = 0 \\
        u & \text{if } c_{\alpha} = 0, \, c_{\beta} = 0 \\
        0 & \text{else}
        \end{cases}

    It is the same when foreground classes are renamed: nodes can tell their own class from another,
    but nothing behind the attention can tell *which* class it is. A free embedding in queries and
    keys gives that away, since its queries select features by class. The biases start at zero.

    Args:
        heads (int): Number of attention heads :math:`H`.

    Shapes:
        - **input:** classes of targets and of sources, integers of shapes that broadcast,
          :math:`(*)`
        - **output:** :math:`(*, H)`
    """

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(3, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all biases to zero."""
        nn.init.zeros_(self.weight)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Return the biases.

        Args:
            target (torch.Tensor): The classes of the nodes that attend, 0 for background.
            source (torch.Tensor): The classes of the nodes attended to.
        """
        same = target == source
        of_foreground = torch.where(same, 0, torch.where(source == 0, 1, 3))
        row = torch.where(target > 0, of_foreground, torch.where(same, 2, 3))
        return nn.functional.embedding(row, nn.functional.pad(self.weight, (0, 0, 0, 1)))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(heads={self.heads})"
