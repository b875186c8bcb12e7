"""P-GNN: congeneric semantics for weakly supervised segmentation."""
