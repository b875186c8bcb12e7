"""What is on disk: files, label images, model files and folders, the supervision ledger."""

from pgnn_geo.io.export import read_coco, write_coco, write_voc_submission

__all__ = ["read_coco", "write_coco", "write_voc_submission"]
