"""A GPS layer with ComplementaryConv as its attention, and a model made by PyG's Sequential.

    python examples/gps_block.py

The task needs both halves of a GPS layer: a node that asks gives a key, a node far away holds the
same key, and a neighbor of that node has the value. Local layers alone cannot reach it, and
attention alone does not see neighbors.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GPSConv, LayerNorm, SAGEConv, Sequential
from torch_geometric.typing import Adj

from pgnn_geo import ComplementaryConv


def make_graph(n: int, keys: int, values: int) -> Data:
    """Questions, keys and values in a random order; each key is joined to its value only."""
    key = torch.randperm(keys)[:n]
    value = torch.randint(values, (n,))
    x = torch.zeros(3 * n, 1 + keys + values)
    x[:n, 0] = 1  # the node asks
    x[:n, 1:].scatter_(1, key.unsqueeze(1), 1)
    x[n : 2 * n, 1:].scatter_(1, key.unsqueeze(1), 1)
    x[2 * n :, 1 + keys :].scatter_(1, value.unsqueeze(1), 1)
    holder = torch.arange(n, 2 * n)
    edge_index = torch.cat(
        [torch.stack([holder + n, holder]), torch.stack([holder, holder + n])], 1
    )
    y = torch.full((3 * n,), -1)
    y[:n] = value
    order = torch.randperm(3 * n)
    return Data(x=x[order], edge_index=order.argsort()[edge_index], y=y[order])


class GPSLayer(torch.nn.Module):
    """GPS with dense attention on the whole graph: no padding, no edge list, any group sizes."""

    def __init__(self, channels: int, local: torch.nn.Module, heads: int) -> None:
        super().__init__()
        self.local = local
        self.attention = ComplementaryConv(channels, heads=heads)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(channels, 2 * channels),
            torch.nn.ReLU(),
            torch.nn.Linear(2 * channels, channels),
        )
        self.norms = torch.nn.ModuleList(LayerNorm(channels, mode="node") for _ in range(3))

    def forward(self, x: Tensor, edge_index: Adj, batch: Tensor) -> Tensor:
        """Local and global message passing side by side, then an MLP."""
        local = self.norms[0](x + self.local(x, edge_index))
        everywhere = self.norms[1](x + self.attention(x, batch=batch))
        out = local + everywhere
        return self.norms[2](out + self.mlp(out))


def make_model(kind: str, in_channels: int, C: int, H: int, out_channels: int) -> Sequential:
    """Two layers between linear maps."""

    def layer() -> tuple[torch.nn.Module, str]:
        if kind == "local only":
            return SAGEConv(C, C), "x, edge_index -> x"
        if kind == "attention only":
            # By position: ComplementaryConv(x, edge_index, edge_attr, batch).
            return ComplementaryConv(C, heads=H), "x, none, none, batch -> x"
        if kind == "GPSConv":
            gps = GPSConv(
                C, SAGEConv(C, C), heads=H, norm="layer_norm", norm_kwargs={"mode": "node"}
            )
            return gps, "x, edge_index, batch -> x"
        return GPSLayer(C, SAGEConv(C, C), heads=H), "x, edge_index, batch -> x"

    modules = [(torch.nn.Linear(in_channels, C), "x -> x")]
    modules += [step for _ in range(2) for step in (layer(), (torch.nn.ReLU(), "x -> x"))]
    modules += [(torch.nn.Linear(C, out_channels), "x -> x")]
    return Sequential("x, edge_index, batch, none", modules)


def main() -> None:
    """Train each kind of model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=6, help="questions in each graph")
    parser.add_argument("--values", type=int, default=8)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keys = 4 * args.pairs

    torch.manual_seed(args.seed)
    number = args.graphs + args.graphs // 4
    graphs = [make_graph(args.pairs, keys, args.values) for _ in range(number)]
    train_loader = DataLoader(graphs[: args.graphs], batch_size=32, shuffle=True)
    test_loader = DataLoader(graphs[args.graphs :], batch_size=64)
    print(f"chance: {1 / args.values:.3f}")
    for kind in ("local only", "attention only", "GPSConv", "GPSLayer"):
        torch.manual_seed(args.seed)
        sizes = (1 + keys + args.values, args.channels, args.heads, args.values)
        model = make_model(kind, *sizes).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        start = time.perf_counter()
        for _ in range(args.epochs):
            for data in train_loader:
                data = data.to(device)
                out = model(data.x, data.edge_index, data.batch, None)
                loss = F.cross_entropy(out, data.y, ignore_index=-1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        seconds = (time.perf_counter() - start) / args.epochs
        right = total = 0
        with torch.no_grad():
            for data in test_loader:
                data = data.to(device)
                out = model(data.x, data.edge_index, data.batch, None)
                asks = data.y >= 0
                right += int((out[asks].argmax(dim=1) == data.y[asks]).sum())
                total += int(asks.sum())
        print(
            f"{kind:<15} Loss: {loss:.4f}, Test: {right / total:.3f}, {1e3 * seconds:.0f} ms/epoch"
        )


# PyG's Sequential imports the script that makes it, so the work must not start on import.
if __name__ == "__main__":
    main()
