"""The layer inside another idea: seeds that spread over an affinity graph of image cells by a GNN.

    python examples/plug_into_gnn.py

A class activation map finds the striking part of an object. Here such seeds are labels of a few
nodes of a graph: cells of photos, joined to their neighbors and to the cells that look most alike
in the group's other photos. A GNN learns from the seeds and labels all cells, once with each layer.
The seeds are simulated: the striking parts of drawn objects, and every tenth background cell.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATv2Conv, TransformerConv
from torch_geometric.utils import coalesce, grid

from pgnn_geo import ComplementaryConv
from pgnn_geo.datasets import SHAPES_CLASSES
from pgnn_geo.datasets.shapes import draw_scene
from pgnn_geo.metrics import ConfusionMatrix

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--groups", type=int, default=10, help="groups of three photos of one class")
parser.add_argument("--size", type=int, default=96, help="side of a photo in pixels")
parser.add_argument("--cell", type=int, default=6, help="side of a cell in pixels")
parser.add_argument("--neighbors", type=int, default=8, help="similar cells in other photos")
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--heads", type=int, default=4)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--lr", type=float, default=0.005)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
num_classes, side = len(SHAPES_CLASSES), args.size // args.cell


def cells(picture: Tensor) -> Tensor:
    """Cut a picture [*, H, W] into its cells [side * side, *, cell, cell]."""
    rows = picture.unfold(-2, args.cell, args.cell).unfold(-2, args.cell, args.cell)
    return rows.flatten(-4, -3).movedim(-3, 0)


def make_group(group: int) -> Data:
    """Draw three photos that share a class, and join their cells."""
    xs, ys, seeds, photos = [], [], [], []
    for i in range(3):
        # Classes take turns by index, so photos of one class lie that many apart.
        index = (3 * (group // num_classes) + i) * num_classes + group % num_classes
        scene = draw_scene(args.seed, "train", index, args.size)
        image = torch.from_numpy(scene.image).permute(2, 0, 1) / 255
        y = cells(torch.from_numpy(scene.mask)).flatten(1).mode(dim=1).values
        part = cells(torch.from_numpy(scene.part)).flatten(1).amax(dim=1)
        tenth = torch.rand(y.shape) < 0.1
        xs.append(cells(image).flatten(1))
        ys.append(y.long())
        seeds.append(torch.where(part > 0, part.long(), torch.where((y == 0) & tenth, 0, 255)))
        photos.append(torch.full_like(ys[-1], i))
    x, y, seed, photo = map(torch.cat, (xs, ys, seeds, photos))
    # Color statistics of a cell do not depend on where in the cell its texture begins.
    color = x.view(len(x), 3, -1)
    looks = F.normalize(
        torch.cat([color.mean(2), color.std(2), color.sort(2).values.flatten(1)], 1)
    )
    near, _ = grid(side, side)
    edges = [near + i * side**2 for i in range(3)]
    likeness = (looks @ looks.t()).masked_fill(photo.unsqueeze(1) == photo, -1)
    source = likeness.topk(args.neighbors, dim=1).indices
    target = torch.arange(len(x)).unsqueeze(1).expand_as(source)
    edges.append(torch.stack([source.flatten(), target.flatten()]))
    edge_index = coalesce(torch.cat(edges, dim=1))
    return Data(x=torch.cat([x, looks], dim=1), y=y, seed=seed, edge_index=edge_index)


class GNN(torch.nn.Module):
    """Two layers with residuals between linear maps; no layer at all is the baseline."""

    def __init__(self, layer: str, in_channels: int) -> None:
        super().__init__()
        C, H = args.hidden, args.heads
        make = {
            "none": lambda: None,
            "GATv2Conv": lambda: GATv2Conv(C, C // H, heads=H),
            "TransformerConv": lambda: TransformerConv(C, C // H, heads=H, root_weight=False),
            "ComplementaryConv, edges": lambda: ComplementaryConv(C, heads=H),
            "ComplementaryConv, groups": lambda: ComplementaryConv(C, heads=H),
        }[layer]
        self.fused = layer.endswith("groups")
        self.lin_in = torch.nn.Linear(in_channels, C)
        self.convs = torch.nn.ModuleList(c for c in (make(), make()) if c is not None)
        self.lin_out = torch.nn.Linear(C, num_classes + 1)

    def forward(self, batch: Batch) -> Tensor:
        """Return the class scores of all cells."""
        x = self.lin_in(batch.x).relu()
        for conv in self.convs:
            if self.fused:  # every cell of the group's photos to every other
                x = x + conv(x, batch=batch.batch).relu()
            else:
                x = x + conv(x, batch.edge_index).relu()
        return self.lin_out(x)


def miou(label: Tensor, batch: Batch) -> float:
    """Mean IoU of labels of all cells, background included."""
    matrix = ConfusionMatrix(num_classes)
    matrix.update(label.cpu(), batch.y.cpu())
    return matrix.compute().miou


torch.manual_seed(args.seed)
batch = Batch.from_data_list([make_group(g) for g in range(args.groups)]).to(device)
known = batch.seed < 255
print(
    f"{batch.num_graphs} groups, {batch.num_nodes} cells, {batch.num_edges} edges, "
    f"{int((batch.seed[known] > 0).sum())} object and {int((batch.seed == 0).sum())} background "
    f"seeds; mIoU of the seeds alone {miou(batch.seed * known, batch):.3f}"
)
for layer in (
    "none",
    "GATv2Conv",
    "TransformerConv",
    "ComplementaryConv, edges",
    "ComplementaryConv, groups",
):
    torch.manual_seed(args.seed)
    model = GNN(layer, batch.num_features).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=5e-4)
    balance = 1 / torch.bincount(batch.seed[known], minlength=num_classes + 1).clamp(min=1)
    start = time.perf_counter()
    for _ in range(args.epochs):
        loss = F.cross_entropy(model(batch)[known], batch.seed[known], balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = (time.perf_counter() - start) / args.epochs
    with torch.no_grad():
        result = miou(model(batch).argmax(dim=1), batch)
    print(f"{layer:<26} Loss: {loss.item():.4f}, mIoU: {result:.3f}, {1e3 * seconds:.0f} ms/epoch")
