"""When a layer may compute its messages in another, faster way."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.nn.conv import MessagePassing

METHODS = ("message", "aggregate", "update", "message_and_aggregate", "edge_update")
HOOKS = [
    f"_{name}_forward_{when}"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for when in ("pre_hooks", "hooks")
]


def is_eager(x: Tensor) -> bool:
    """Whether `x` is a plain tensor that nothing compiles, exports, traces, fakes or transforms.

    Faster ways of computing the same often lack what a transform needs, such as a batching rule,
    a forward derivative, or values.
    """
    return (
        not is_compiling()
        and type(x) is Tensor
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(x)  # of many gradients at once
        and forward_ad._current_level < 0
    )


def is_plain(conv: MessagePassing, layer: type[MessagePassing]) -> bool:
    """Whether message passing of `conv` computes what its class `layer` says, and nobody watches.

    Not so if a subclass or the object itself overrides a method, if it aggregates by anything else
    than the sum, or if a hook or an explainer is to see the messages.
    """
    if conv.explain or type(conv.aggr_module) is not SumAggregation:
        return False
    if any(getattr(conv, name) for name in HOOKS):
        return False
    for name in METHODS:
        if name in vars(conv) or getattr(type(conv), name) is not getattr(layer, name):
            return False
    # PyG writes these two anew for each class, into a module named after it, where it can.
    own = (f"{type(conv).__module__}_{type(conv).__name__}", MessagePassing.__module__)
    return all(f.__module__.startswith(own) for f in (conv.propagate, conv.edge_updater))
