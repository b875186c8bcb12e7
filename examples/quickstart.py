"""Features to graph to edges to attention maps: the pieces of P-GNN, without any data."""

import torch

from pgnn_geo import (
    PGNN,
    AttentionDecoder,
    ComplementaryBlock,
    ComplementaryConv,
    PatchGraphBuilder,
    complete_edge_index,
    stitch,
)
from pgnn_geo.nn import normalize_attention

torch.manual_seed(0)
channels, num_classes = 64, 20

# Feature maps of six photos from any backbone, of any height and width. The first three photos
# share a class, the last three another one: two groups.
features = torch.randn(6, channels, 30, 41)
group = torch.tensor([0, 0, 0, 1, 1, 1])

# 1. Features to graph: 4 x 4 patches of each photo become nodes, one graph per group.
builder = PatchGraphBuilder(grid=4)
batch = builder(features, group=group)
print(f"graph:   x {list(batch.x.shape)}, {batch.num_graphs} graphs, ptr {batch.ptr.tolist()}")
print(f"stitch:  {list(stitch(batch).shape)}, exact: {torch.equal(stitch(batch), features)}")

# 2. Weighted edges (Eq. 2 and 3), patches of all photos of a group to each other. Without an edge
# list this is dense attention; on one it is message passing. Both give the same numbers.
conv = ComplementaryConv(channels, heads=4, num_classes=num_classes)
out, (edge_index, alpha) = conv(
    batch.x, batch=batch.batch, node_class=batch.node_class, return_attention_weights=True
)
edges = complete_edge_index(batch.ptr)
gap = (conv(batch.x, edges, node_class=batch.node_class) - out).abs().max().item()
total = torch.zeros(batch.num_nodes).index_add_(0, edge_index[1], alpha[:, 0])
print(f"edges:   edge_index {list(edge_index.shape)}, alpha {list(alpha.shape)}")
print(f"weights: sum to {total.min():.3f}..{total.max():.3f} over the sources of each patch")
print(f"paths:   nodes {list(out.shape)}, dense and message passing differ by {gap:.0e}")

# 3. One layer of P-GNN, back to feature maps, and on to attention maps and class logits.
block = ComplementaryBlock(channels, heads=4, num_classes=num_classes)
decoder = AttentionDecoder(channels, num_classes)
batch.x = block(batch.x, batch=batch.batch, node_class=batch.node_class)
scores, logits = decoder(stitch(batch))
attention = normalize_attention(scores)
print(f"maps:    attention {list(attention.shape)}, logits {list(logits.shape)}")

# 4. All of it, backbone included. Maps of classes that a photo is not tagged with are zero.
model = PGNN("vgg_tiny", num_classes, weights=None, output_stride=8)
tags = torch.nn.functional.one_hot(torch.tensor([7, 7, 7, 11, 11, 11]), num_classes)
result = model(torch.rand(6, 3, 128, 96), group=group, tags=tags)
print(f"model:   attention {list(result.attention.shape)}, logits {list(result.logits.shape)}")
