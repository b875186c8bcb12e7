"""Labels with tags that were missing, from the run to the network and the report."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pgnn_geo.app.added_tags import with_added_tags, write_added_tags
from pgnn_geo.app.cli import main
from pgnn_geo.datasets import VOC2012, TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import load_mask

TINY = ["--features.size", "64", "--evidence.positions", "400", "--evidence.iterations", "5"]
TINY += ["--network.backbone", "vgg_tiny", "--network.weights", "TEXTURES"]

STAGE_2 = ["--segment_network.backbone=vgg_tiny", "--segment_network.weights=null"]
STAGE_2 += ["--segment_network.hidden_channels=32", "--segment_train.freeze_stages=1"]
STAGE_2 += ["--segment_train.size=64", "--segment_train.crop=64", "--segment_train.epochs=1"]
STAGE_2 += ["--segment_train.workers=0"]


def test_added_tags_go_all_the_way(shapes_root: Path, tmp_path: Path) -> None:
    source = ["--root", str(shapes_root)]
    out = tmp_path / "run"
    run = ["run", *source, "--out", str(out), *TINY, "--labels.refine", "none", "--baseline"]
    run += ["true", "--evidence.absence", "0.1", *STAGE_2]
    main(run)
    labels = out / "pgnn" / "labels"
    with open(labels / "added_tags.csv", newline="") as handle:
        rows = [(row["image"], row["class"]) for row in csv.DictReader(handle)]
    photos = VOC2012(shapes_root, "train")
    assert photos.tags is not None and rows
    for image, name in rows:
        assert not photos.tags[photos.image_ids.index(image), photos.classes.index(name)]
    allowed = with_added_tags(photos, labels).tags
    assert allowed is not None and int(allowed.sum() - photos.tags.sum()) == len(rows)
    assert len(np.load(labels / "maps.npy")) == int(allowed.sum())
    found = 0
    for i, image in enumerate(photos.image_ids):
        shown = set(load_mask(labels / f"{image}.png").unique().tolist()) - {0}
        assert shown <= set((allowed[i].nonzero()[:, 0] + 1).tolist())
        found += len(shown - set((photos.tags[i].nonzero()[:, 0] + 1).tolist()))
    assert found  # added classes are drawn
    assert not (out / "cam" / "labels" / "added_tags.csv").exists()  # the baseline is as it was
    assert len(np.load(out / "cam" / "labels" / "maps.npy")) == int(photos.tags.sum())
    assert (out / "segmentation" / "labels" / "certain" / "ignored.json").is_file()
    again = tmp_path / "labels"
    main(["label", "--checkpoint", str(out / "pgnn" / "model"), *source, "--out", str(again)])
    assert (again / "added_tags.csv").read_bytes() == (labels / "added_tags.csv").read_bytes()
    image, name = rows[0]
    assert (again / f"{image}.png").read_bytes() == (labels / f"{image}.png").read_bytes()
    page = (out / "report.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    photo = next(p for p in json.loads(data[1])["galleries"][0]["photos"] if p["id"] == image)
    label = photos.classes.index(name) + 1
    assert label in photo["maps"]["pgnn"] and label not in photo["maps"]["cam"]
    assert label not in photo["tags"]


def test_a_file_of_added_tags_of_other_classes_is_refused(tmp_path: Path) -> None:
    photos = TaggedDataset(["a", "b"], [Path("a.png"), Path("b.png")], ["x", "y"], torch.eye(2))
    assert with_added_tags(photos, tmp_path) is photos
    write_added_tags(tmp_path, photos, torch.ones(2, 2))
    assert (tmp_path / "added_tags.csv").read_text() == "image,class\na,y\nb,x\n"
    assert torch.equal(with_added_tags(photos, tmp_path).tags, torch.ones(2, 2))
    assert torch.equal(with_added_tags(photos.subset([1]), tmp_path).tags, torch.ones(1, 2))
    (tmp_path / "added_tags.csv").write_text("image,class\na,z\n")
    with pytest.raises(InputError, match=r"added_tags\.csv cannot be read: .* classes x, y"):
        with_added_tags(photos, tmp_path)
    with pytest.raises(InputError, match=r"tags: shape \(2, 3\), want \(2, 2\)"):
        photos.with_tags(torch.ones(2, 3))
