"""What do the edges of complete group graphs cost, beside everything else people write for them?

Every rival makes the same edges, which is checked first, except two: `limit` only writes as many
bytes, and `knn` makes k edges per node from features, as Vision GNN does (cosine, top-k within
the group). Sizes of groups are drawn between 20 and 70 where n is "20-70".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _common import Report, parser
from _readme import paste
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.utils import add_self_loops, dense_to_sparse, to_undirected

from pgnn_geo.graph import complete_edge_index

Blocks = list[tuple[int, int]]


def python_loop(blocks: Blocks, device: str) -> Tensor:
    """Two nested loops per group."""
    edges = []
    for start, end in blocks:
        for target in range(start, end):
            for source in range(start, end):
                edges.append((source, target))
    return torch.tensor(edges, device=device).t().contiguous()


def product(blocks: Blocks, device: str) -> Tensor:
    """`itertools.product` of the nodes of each group."""
    pairs = itertools.chain.from_iterable(
        itertools.product(range(start, end), repeat=2) for start, end in blocks
    )
    return torch.tensor(list(pairs), device=device).t().flip(0).contiguous()


def meshgrid(blocks: Blocks, device: str) -> Tensor:
    """`torch.meshgrid` per group."""
    parts = []
    for start, end in blocks:
        nodes = torch.arange(start, end, device=device)
        target, source = torch.meshgrid(nodes, nodes, indexing="ij")
        parts.append(torch.stack([source.reshape(-1), target.reshape(-1)]))
    return torch.cat(parts, dim=1)


def nonzero(batch: Tensor) -> Tensor:
    """The true entries of the mask of pairs in one group."""
    return (batch.unsqueeze(1) == batch).nonzero().t().flip(0).contiguous()


def combinations(blocks: Blocks, device: str) -> Tensor:
    """Each pair once, then mirrored, then self-loops."""
    parts = [torch.combinations(torch.arange(a, b, device=device)) for a, b in blocks]
    edge_index = to_undirected(torch.cat(parts).t().contiguous(), num_nodes=blocks[-1][1])
    return add_self_loops(edge_index, num_nodes=blocks[-1][1])[0]


def knn(x: Tensor, k: int = 9) -> Tensor:
    """The k most similar nodes of its group point to each node of x [G, n, C]."""
    g, n, _ = x.shape
    x = F.normalize(x, dim=-1)
    source = (x @ x.transpose(1, 2)).topk(min(k, n), dim=-1).indices
    source = source + torch.arange(0, g * n, n, device=x.device).view(g, 1, 1)
    target = torch.arange(g * n, device=x.device).view(g, n, 1).expand_as(source)
    return torch.stack([source.flatten(), target.flatten()])


def rivals(sizes: list[int], device: str) -> dict[str, Callable[[], Tensor]]:
    """Every way to make the edges of groups of these sizes, checked."""
    ptr = torch.tensor([0, *itertools.accumulate(sizes)])
    blocks = list(itertools.pairwise(ptr.tolist()))
    g, n, num_nodes = len(sizes), max(sizes), sum(sizes)
    batch = torch.arange(g).repeat_interleave(torch.tensor(sizes)).to(device)
    num_edges = sum(s * s for s in sizes)
    pieces = [
        Data(edge_index=complete_edge_index(torch.tensor([0, s]), device=device), num_nodes=s)
        for s in sizes
    ]
    out: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: complete_edge_index(ptr, device=device),
        "ours, EdgeIndex": lambda: complete_edge_index(ptr, as_edge_index=True, device=device),
        "limit": lambda: torch.full((2, num_edges), 7, dtype=torch.long, device=device),
        "python loop": lambda: python_loop(blocks, device),
        "itertools.product": lambda: product(blocks, device),
        "meshgrid": lambda: meshgrid(blocks, device),
        "combinations + to_undirected": lambda: combinations(blocks, device),
        # The pieces are ready-made; this is joining them alone.
        "Batch.from_data_list": lambda: Batch.from_data_list(pieces).edge_index,
    }
    if num_nodes <= 4096:
        out["nonzero"] = lambda: nonzero(batch)
    if min(sizes) == n:
        adjacency = torch.ones(g, n, n, device=device)
        x = torch.randn(g, n, 512, device=device)
        # Without the checks and the offsets, which are ready-made: a lower bound.
        template = complete_edge_index(torch.tensor([0, n]), device=device).unsqueeze(1)
        offset = torch.arange(0, num_nodes, n, device=device).view(1, g, 1)
        out["template + offset"] = lambda: (template + offset).view(2, -1)
        out["dense_to_sparse"] = lambda: dense_to_sparse(adjacency)[0].flip(0).contiguous()
        out["knn"] = lambda: knn(x)
    expected = out["meshgrid"]()
    for name, fn in out.items():
        if name not in ("limit", "knn"):
            made = fn().as_subclass(Tensor)
            order = (made[1] * num_nodes + made[0]).argsort()
            assert torch.equal(made[:, order], expected), name
    return out


def main() -> None:
    """Runs the cases."""
    args = parser(__doc__).parse_args()
    report = Report("edges", args)
    cases = [(64, 51), (8, 17), (8, 51), (8, 192)]
    if not args.quick:
        cases += [(8, 96), (8, 400), (1, 1024), (512, 17), (8, (20, 70)), (64, (20, 70))]
    torch.manual_seed(0)
    for groups, n in cases:
        if isinstance(n, tuple):
            sizes = torch.randint(n[0], n[1] + 1, (groups,)).tolist()
        else:
            sizes = [n] * groups
        label = n if isinstance(n, int) else f"{n[0]}-{n[1]}"
        case = {
            "what": "complete",
            "groups": groups,
            "n": label,
            "edges": sum(s * s for s in sizes),
        }
        ratios = report.run(case, rivals(sizes, args.device), reference="ours")
        if (groups, n) == (64, 51):
            print(
                f"\n64 groups of 51: loop / ours {ratios['python loop']:.0f} (at least 200), "
                f"meshgrid / ours {ratios['meshgrid']:.1f} (at least 2), "
                f"ours / limit {1 / ratios['limit']:.2f} (at most 3)\n"
            )
    report.write(x="n", where={"groups": 8})
    if args.readme:
        paste(report)


if __name__ == "__main__":
    main()
