"""What does attention on complete group graphs cost, beside PyG's layers and the bare minimum?

`bare attention` is the limit: the same four projections around `scaled_dot_product_attention`,
nothing checked, equal groups only. A `ratio` is the time over that of `ComplementaryConv` (in
`ragged`, of equal groups; in `edges`, of `TransformerConv`): a rival above 1 is slower. `saved MB`
is what autograd keeps for the backward pass (inputs and parameters not counted), `peak MB` the most
that one call allocates.

    python benchmarks/conv.py --quick
    python benchmarks/conv.py --only complete edges positions --readme
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _common import Report, free_bytes, parser, peak_bytes, saved_bytes
from _readme import paste
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, SimpleConv, TransformerConv
from torch_geometric.utils import scatter, to_dense_batch

from pgnn_geo import ComplementaryConv, CongenericPropagation, complete_edge_index

HEADS = 8
#: Nodes, edges and channels of graphs given by their edges: small ones (the first is as large as
#: Zachary's karate club, the third as Cora), dense ones and large ones.
EDGES = [
    (34, 156, 64),
    (600, 1_300, 64),
    (2_708, 10_556, 64),
    (2_708, 10_556, 256),
    (408, 20_808, 64),
    (408, 20_808, 512),
    (10_000, 100_000, 64),
    (10_000, 100_000, 128),
    (10_000, 100_000, 256),
]
Rivals = dict[str, Callable[[], Tensor]]


class BareAttention(nn.Module):
    """The least that computes the same numbers for equal groups; nodes may have positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(channels, channels) for _ in range(4)
        )

    def forward(self, x: Tensor, groups: int) -> Tensor:
        """Attend within groups of equal size."""

        def split(t: Tensor) -> Tensor:  # [V, C] -> [G, H, n, D]
            return t.view(groups, -1, HEADS, t.size(-1) // HEADS).transpose(1, 2)

        if x.dim() == 2:
            q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
            out = F.scaled_dot_product_attention(q, k, v)
            return self.out(out.transpose(1, 2).reshape(x.shape))
        shape, (V, C), mean = x.shape, x.shape[:2], x.mean(dim=(2, 3))
        v = F.conv2d(x, self.value.weight[..., None, None], self.value.bias).view(V, C, -1)
        v = v.view(groups, V // groups, HEADS, -1).transpose(1, 2)  # [G, H, n, D * p * p]
        out = F.scaled_dot_product_attention(split(self.query(mean)), split(self.key(mean)), v)
        out = out.transpose(1, 2).reshape(shape)
        return F.conv2d(out, self.out.weight[..., None, None], self.out.bias)


class DenseAttention(nn.Module):
    """`nn.MultiheadAttention` on padded groups, as PyG's GPSConv has it."""

    def __init__(self, channels: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        """Attend within groups of any size."""
        h, mask = to_dense_batch(x, batch)
        h, _ = self.attention(h, h, h, key_padding_mask=~mask, need_weights=False)
        return h[mask]


def compare(
    report: Report, case: dict[str, Any], rivals: Rivals, exclude: tuple[Tensor, ...]
) -> None:
    """Times the rivals forward, and forward and backward, and counts their memory."""

    def forward(fn: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return fn()

        return run

    def backward(fn: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            out = fn()
            torch.autograd.backward(out, torch.ones_like(out))

        return run

    memory: dict[str, dict[str, float]] = {}
    for mode, wrap in (("forward", forward), ("forward+backward", backward)):
        room = free_bytes(report.args.device) / 1e6
        for name in [name for name in memory if 2.5 * memory[name]["peak MB"] > room]:
            print(f"{mode}: {name} left out, {room / 1e3:.0f} GB free are too few for it", case)
            del rivals[name]
        runs = {name: wrap(fn) for name, fn in rivals.items()}
        memory = {
            name: {"peak MB": peak_bytes(run, report.args.device) / 1e6}
            for name, run in runs.items()
        }
        if mode != "forward":
            for name, fn in rivals.items():
                memory[name]["saved MB"] = saved_bytes(fn, exclude) / 1e6
        report.run({**case, "mode": mode}, runs, next(iter(rivals)), memory)
    report.write()  # what was measured so far, should a later case fail


def layers(channels: int, device: str) -> dict[str, Any]:
    """Ours and the rivals, with the same channels and heads."""
    torch.manual_seed(0)
    made = {
        "ours": ComplementaryConv(channels, heads=HEADS),
        "bare": BareAttention(channels),
        "transformer": TransformerConv(channels, channels // HEADS, heads=HEADS),
        "gatv2": GATv2Conv(channels, channels // HEADS, heads=HEADS, add_self_loops=False),
        "dense": DenseAttention(channels),
    }
    return {name: layer.to(device) for name, layer in made.items()}


def complete(report: Report, what: str, sizes: list[int], channels: int = 512) -> None:
    """Complete graphs of the given sizes."""
    device, on = report.args.device, layers(channels, report.args.device)
    size = torch.tensor(sizes)
    ptr = F.pad(size.cumsum(0), (1, 0)).to(device)
    batch = torch.arange(len(sizes)).repeat_interleave(size).to(device)
    x = torch.randn(len(batch), channels, device=device, requires_grad=True)
    edge_index = complete_edge_index(ptr)
    rivals: Rivals = {"ComplementaryConv": lambda: on["ours"](x, batch=batch)}
    if len(set(sizes)) == 1:
        rivals["bare attention"] = lambda: on["bare"](x, len(sizes))
        rivals["ComplementaryConv, sizes given"] = lambda: on["ours"](x, batch_size=len(sizes))
    rivals |= {
        "GPSConv's attention": lambda: on["dense"](x, batch),
        "ComplementaryConv, edges": lambda: on["ours"](x, edge_index),
        "TransformerConv": lambda: on["transformer"](x, edge_index),
        "GATv2Conv": lambda: on["gatv2"](x, edge_index),
    }
    n = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)}-{max(sizes)}"
    parameters = [p for layer in on.values() for p in layer.parameters()]
    case = {"what": what, "groups": len(sizes), "n": n, "nodes": len(batch), "channels": channels}
    compare(report, case, rivals, (x, edge_index, batch, *parameters))


def ragged(report: Report, groups: int = 32, channels: int = 512) -> None:
    """Groups of 20 to 70 nodes against equal groups with as many edges."""
    device, on = report.args.device, layers(channels, report.args.device)
    sizes = torch.tensor([random.Random(seed).randint(20, 70) for seed in range(groups)])
    n = round((int((sizes**2).sum()) / groups) ** 0.5)
    rivals: Rivals = {}
    tensors = []
    for name, size in (
        (f"equal groups of {n}", torch.full((groups,), n)),
        ("ragged groups", sizes),
    ):
        batch = torch.arange(groups).repeat_interleave(size).to(device)
        x = torch.randn(len(batch), channels, device=device, requires_grad=True)
        hints = {"batch_size": groups, "max_num_nodes": int(size.max())}
        rivals[name] = lambda x=x, batch=batch: on["ours"](x, batch=batch)
        rivals[f"{name}, sizes given"] = lambda x=x, b=batch, h=hints: on["ours"](x, batch=b, **h)
        tensors += [x, batch]
    case = {"what": "ragged", "groups": groups, "n": "20-70", "channels": channels}
    compare(report, case, rivals, (*tensors, *on["ours"].parameters()))


def positions(report: Report, photos: int, side: int, channels: int = 512) -> None:
    """Patches with positions: 16 of each photo, three photos to a group."""
    device, on = report.args.device, layers(channels, report.args.device)
    groups, nodes = photos // 3, 16 * photos
    x = torch.randn(nodes, channels, side, side, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(), last.requires_grad_()
    rivals: Rivals = {
        "ComplementaryConv": lambda: on["ours"](x, batch_size=groups),
        "bare attention": lambda: on["bare"](x, groups),
        "ComplementaryConv, channels last": lambda: on["ours"](last, batch_size=groups),
        "bare attention, channels last": lambda: on["bare"](last.contiguous(), groups),
    }
    case = {
        "what": "positions",
        "groups": groups,
        "n": "48",
        "nodes": nodes,
        "channels": channels,
        "positions": side * side,
    }
    parameters = [*on["ours"].parameters(), *on["bare"].parameters()]
    compare(report, case, rivals, (x, last, *parameters))


def on_edges(report: Report, nodes: int, edges: int, channels: int) -> None:
    """A graph of which only the edge list is given: random, or eight complete groups of 51."""
    device, on = report.args.device, layers(channels, report.args.device)
    torch.manual_seed(0)
    if (nodes, edges) == (408, 20_808):
        edge_index = complete_edge_index(torch.arange(9, device=device) * 51)
    else:
        edge_index = torch.randint(nodes, (2, edges), device=device)
    x = torch.randn(nodes, channels, device=device, requires_grad=True)
    watched = copy.deepcopy(on["ours"])  # a hook has the messages passed by PyG
    watched.register_message_forward_pre_hook(lambda *_: None)
    rivals: Rivals = {
        "TransformerConv": lambda: on["transformer"](x, edge_index),
        "ComplementaryConv": lambda: on["ours"](x, edge_index),
        "ComplementaryConv, PyG's messages": lambda: watched(x, edge_index),
        "GATv2Conv": lambda: on["gatv2"](x, edge_index),
    }
    parameters = [p for layer in (*on.values(), watched) for p in layer.parameters()]
    case = {"what": "edges", "nodes": nodes, "edges": edges, "channels": channels}
    compare(report, case, rivals, (x, edge_index, *parameters))


def evidence(report: Report, photos: int, side: int, channels: int = 512, classes: int = 6) -> None:
    """Evidence that travels within photos, as in labelling: fused, written down, and on edges."""
    device, nodes = report.args.device, photos * side**2
    torch.manual_seed(0)
    x = torch.randn(nodes, channels, device=device)
    scores = torch.rand(nodes, classes, device=device)
    batch = torch.arange(photos, device=device).repeat_interleave(side**2)
    edge_index = complete_edge_index(torch.arange(photos + 1, device=device) * side**2)
    ours, simple = CongenericPropagation(power=2.0), SimpleConv()

    def written_down() -> Tensor:
        unit = F.normalize(x, dim=1).view(photos, -1, channels)
        weight = (unit @ unit.mT).relu().square()
        weight = weight / weight.sum(dim=2, keepdim=True)
        return (weight @ scores.view(photos, -1, classes)).flatten(0, 1)

    def on_edges() -> Tensor:
        unit, (source, target) = F.normalize(x, dim=1), edge_index
        weight = (unit[source] * unit[target]).sum(dim=1).relu().square()
        total = scatter(weight, target, dim_size=nodes)
        return simple(scores, edge_index, weight / total[target])

    rivals: Rivals = {
        "ours": lambda: ours(scores, x, batch=batch),
        "torch, three lines": written_down,
        "SimpleConv": on_edges,
    }
    for name, rival in rivals.items():
        torch.testing.assert_close(rival(), rivals["ours"](), msg=name)
    case = {"what": "evidence", "groups": photos, "nodes": nodes, "channels": channels}
    report.run({**case, "mode": "forward"}, rivals, "ours")


def compiled(report: Report, groups: int = 8, n: int = 51, channels: int = 512) -> None:
    """`torch.compile` against eager, both paths."""
    device, on = report.args.device, layers(channels, report.args.device)
    edge_index = complete_edge_index(torch.arange(groups + 1, device=device) * n)
    x = torch.randn(groups * n, channels, device=device, requires_grad=True)
    fast = {name: torch.compile(on[name], fullgraph=True) for name in ("ours", "transformer")}
    rivals: Rivals = {
        "ComplementaryConv": lambda: on["ours"](x, batch_size=groups),
        "ComplementaryConv, compiled": lambda: fast["ours"](x, batch_size=groups),
        "ComplementaryConv, edges": lambda: on["ours"](x, edge_index),
        "ComplementaryConv, edges, compiled": lambda: fast["ours"](x, edge_index),
        "TransformerConv": lambda: on["transformer"](x, edge_index),
        "TransformerConv, compiled": lambda: fast["transformer"](x, edge_index),
    }
    parameters = [p for layer in on.values() for p in layer.parameters()]
    case = {"what": "compile", "groups": groups, "n": str(n), "channels": channels}
    compare(report, case, rivals, (x, edge_index, *parameters))


def main() -> None:
    """Runs the chosen parts and writes the report."""
    parts = ["complete", "growth", "groups", "ragged", "positions", "edges", "evidence"]
    parts += ["compile"]
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=parts, default=parts)
    args = arguments.parse_args()
    report, quick = Report("conv", args), args.quick
    if "complete" in args.only:
        for groups, n in [(8, 51)] if quick else [(8, 51), (32, 51), (8, 192), (1, 768), (1, 1024)]:
            complete(report, "complete", [n] * groups)
    if "growth" in args.only:
        for n in (16, 32) if quick else (16, 32, 64, 128, 256, 512):
            complete(report, "growth in n", [n] * 4)
    if "groups" in args.only:
        for groups in (1, 2) if quick else (1, 4, 16, 64):
            complete(report, "growth in groups", [51] * groups)
    if "ragged" in args.only:
        ragged(report, 8 if quick else 32)
    if "positions" in args.only:
        for side in (2,) if quick else (2, 4, 8):
            positions(report, 3 if quick else 12, side)
    if "edges" in args.only:
        for nodes, edges, channels in EDGES[:2] if quick else EDGES:
            on_edges(report, nodes, edges, channels)
    if "evidence" in args.only:
        for photos, side in [(4, 16)] if quick else [(4, 16), (4, 32)]:
            evidence(report, photos, side)
    if "compile" in args.only:
        compiled(report)
    for row in report.cases:  # numbers for the plot; ragged rows have none
        row["nodes per group"] = int(row["n"]) if str(row.get("n", "")).isdigit() else 0
    where = {"what": "growth in n", "mode": "forward+backward"}
    report.write("nodes per group" if "growth" in args.only else None, where)
    if args.readme:
        for row in report.cases:
            del row["nodes per group"]
        paste(report)


if __name__ == "__main__":
    main()
