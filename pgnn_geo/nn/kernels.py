"""Kernels of congeneric propagation: what the similarity of two nodes is worth."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pgnn_geo.registry import Registry

#: From cosines and the power :math:`p` to weights.
Weigh = Callable[[Tensor, float], Tensor]


class Kernel(NamedTuple):
    r"""From cosines :math:`\langle \mathbf{u}_{\alpha}, \mathbf{u}_{\beta} \rangle` to weights.

    Args:
        weigh (callable, optional): From a tensor of cosines and the power :math:`p` to weights of
            the same shape, 0 or more, which are divided by their sum over the sources. It may
            overwrite the cosines. Without it the cosine is the weight, nothing is divided, and
            sums over complete graphs factorize.
    """

    weigh: Weigh | None


#: Kernels by the names that :class:`~pgnn_geo.nn.CongenericPropagation` takes; a new one is an
#: entry here.
KERNELS = Registry[Kernel]("kernel")


def rectified(cosine: Tensor, power: float) -> Tensor:
    r"""Return :math:`\mathrm{ReLU}(\cos)^p`."""
    weight = cosine.relu_()
    return weight if power == 1 else weight**power


def exponential(cosine: Tensor, power: float) -> Tensor:
    r"""Return :math:`e^{p (\cos - 1)}`, which divided by its sum is a softmax."""
    return cosine.sub_(1).mul_(power).exp_()


KERNELS.register("cosine")(Kernel(rectified))
KERNELS.register("softmax")(Kernel(exponential))
KERNELS.register("linear")(Kernel(None))
