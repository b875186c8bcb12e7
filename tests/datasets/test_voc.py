import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgnn_geo.datasets import VOC2012, VOC_CLASSES
from pgnn_geo.errors import InputError, InputNote
from pgnn_geo.io.masks import load_mask, save_mask

SIX = ("cat", "cow", "dog", "horse", "person", "sheep")


def names_of(dataset: VOC2012, index: int) -> set[str]:
    assert dataset.tags is not None
    return {dataset.classes[k] for k in dataset.tags[index].nonzero().flatten().tolist()}


def test_class_list_is_vocs() -> None:
    assert len(VOC_CLASSES) == 20
    assert VOC_CLASSES == tuple(sorted(VOC_CLASSES))
    assert VOC_CLASSES.index("person") + 1 == 15  # the label of people in VOC's masks


@pytest.mark.parametrize("split", ["train", "val", "train_aug", "trainaug"])
def test_tag_sources_agree(voc_tree: Path, split: str) -> None:
    sources = {s: VOC2012(voc_tree, split, tags=s) for s in ("annotations", "csv", "masks")}
    for source, dataset in sources.items():
        assert dataset.tag_source == source
        assert source in repr(dataset)
        assert torch.equal(dataset.tags, sources["csv"].tags)
        assert dataset.image_ids == sources["csv"].image_ids
    assert names_of(sources["masks"], 0) == ({"sofa"} if split == "val" else {"cat", "person"})
    by_path = VOC2012(voc_tree, split, tags=voc_tree / "image_labels.csv")
    assert by_path.tag_source == "csv"


def test_auto_takes_the_first_source_there_is(voc_tree: Path) -> None:
    assert VOC2012(voc_tree, "train").tag_source == "annotations"
    shutil.rmtree(voc_tree / "Annotations")
    assert VOC2012(voc_tree, "train").tag_source == "csv"
    (voc_tree / "image_labels.csv").unlink()
    assert VOC2012(voc_tree, "train").tag_source == "masks"


def test_root_may_be_any_of_three_levels(voc_tree: Path) -> None:
    roots = [voc_tree, voc_tree.parent, voc_tree.parent.parent]
    assert {VOC2012(root, "train").root for root in roots} == {voc_tree}


def test_item_is_the_file(voc_tree: Path) -> None:
    dataset = VOC2012(voc_tree, "train", with_masks=True)
    item = dataset[1]
    with Image.open(dataset.image_path(1)) as photo:
        pixels = np.asarray(photo.convert("RGB"))
    assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), pixels)
    assert torch.equal(item["mask"], load_mask(dataset.mask_path(1)))
    assert item["image"].dtype == torch.uint8 and item["mask"].dtype == torch.uint8
    assert item["crop"].tolist() == [0, 0, 36, 24] and item["size"].tolist() == [24, 36]
    assert (item["image_id"], item["index"], item["flip"]) == ("2007_000002", 1, False)
    assert item["tags"].nonzero().flatten().tolist() == [VOC_CLASSES.index("dog")]
    assert "mask" not in VOC2012(voc_tree, "train")[1]


def test_classes_restrict_images_tags_and_masks(voc_tree: Path) -> None:
    dataset = VOC2012(voc_tree, "train_aug", classes=["dog", "cat"], with_masks=True)
    assert dataset.image_ids == ["2007_000001", "2007_000002", "2007_000003"]  # not the sofa
    assert dataset.tags.tolist() == [[0, 1], [1, 0], [1, 0]]
    raw, mask = load_mask(dataset.mask_path(0)), dataset[0]["mask"]
    assert (mask[raw == 8] == 2).all() and (mask[raw == 15] == 255).all()  # cat; person is other
    assert (mask[raw == 0] == 0).all() and (mask[raw == 255] == 255).all()
    assert set(dataset[2]["mask"].unique().tolist()) == {0, 1, 255}  # dog; chair is other
    assert dataset.check() == []


def test_classes_as_text_and_wrong_classes(voc_tree: Path) -> None:
    assert VOC2012(voc_tree, "train", classes="dog, cat").classes == ("dog", "cat")
    with pytest.raises(InputError, match=r"'hound'.*1 in all.*aeroplane"):
        VOC2012(voc_tree, "train", classes=["dog", "hound"])
    with pytest.raises(InputError, match="more than once: dog"):
        VOC2012(voc_tree, "train", classes=["dog", "dog"])
    with pytest.raises(InputError, match="empty"):
        VOC2012(voc_tree, "train", classes=[])
    with pytest.raises(InputError, match="no image of 'val'"):
        VOC2012(voc_tree, "val", classes=["bus"])


def test_augmented_masks_are_used_for_the_augmented_split_only(voc_tree: Path) -> None:
    target = voc_tree / "SegmentationClassAug" / "2007_000002.png"
    save_mask(target, torch.zeros(24, 36, dtype=torch.uint8))
    assert VOC2012(voc_tree, "train_aug", with_masks=True).mask_path(1) == target
    assert VOC2012(voc_tree, "train", with_masks=True).mask_path(1) != target


def test_test_split_has_photos_alone(voc_tree: Path) -> None:
    dataset = VOC2012(voc_tree, "test", classes=["dog"])
    assert dataset.tags is None and dataset.tag_source is None
    assert "tags" not in dataset[0] and dataset.check() == []
    with pytest.raises(InputError, match="no masks"):
        VOC2012(voc_tree, "test", with_masks=True)


def test_download_is_torchvisions(
    voc_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(root: str, **options: object) -> None:
        calls.append(options)
        shutil.copytree(voc_tree.parent, Path(root) / "VOCdevkit")

    monkeypatch.setattr("pgnn_geo.datasets.voc.VOCSegmentation", fetch)
    target = tmp_path / "fresh"
    assert len(VOC2012(target, "train", download=True)) == 3
    VOC2012(target, "train", download=True)  # there by now: nothing to fetch
    assert [(c["year"], c["download"]) for c in calls] == [("2012", True)]


@pytest.mark.parametrize("source", ["annotations", "csv", "masks"])
def test_tags_must_cover_the_split(voc_tree: Path, source: str) -> None:
    (voc_tree / "Annotations" / "2007_000002.xml").unlink()
    (voc_tree / "SegmentationClass" / "2007_000002.png").unlink()
    table = voc_tree / "image_labels.csv"
    table.write_text(table.read_text().replace("2007_000002,dog\n", ""))
    with pytest.raises(InputError, match=r"no tags for images.*2007_000002 \(1 in all\)"):
        VOC2012(voc_tree, "train", tags=source)


def test_unknown_names_in_tags(voc_tree: Path) -> None:
    table = voc_tree / "image_labels.csv"
    table.write_text(table.read_text().replace("chair dog", "chair dgo"))
    with pytest.raises(InputError, match=r"image_labels.*'dgo' at image 2007_000003.*valid: aero"):
        VOC2012(voc_tree, "train", tags="csv")


def test_masks_as_tags_reject_foreign_labels(voc_tree: Path) -> None:
    path = voc_tree / "SegmentationClass" / "2007_000002.png"
    save_mask(path, torch.full((24, 36), 21))
    with pytest.raises(InputError, match=r"2007_000002.png' has labels 21"):
        VOC2012(voc_tree, "train", tags="masks")


def test_broken_lists_and_roots(voc_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not VOC.*JPEGImages.*VOCdevkit"):
        VOC2012(tmp_path / "nothing", "train")
    with pytest.raises(InputError, match=r"split 'training'.*test, train, train_aug, val"):
        VOC2012(voc_tree, "training")
    with pytest.raises(InputError, match=r"no CSV 'xml'"):
        VOC2012(voc_tree, "train", tags="xml")
    (voc_tree / "Annotations" / "2007_000001.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"2007_000001.xml' cannot be read"):
        VOC2012(voc_tree, "train", tags="annotations")
    names = voc_tree / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("2007_000001\n2007_000001\n")
    with pytest.raises(InputError, match=r"more than once: 2007_000001 \(1 in all\)"):
        VOC2012(voc_tree, "train")
    names.write_text("")
    with pytest.raises(InputError, match="names no image"):
        VOC2012(voc_tree, "train")


def test_class_names_may_come_with_the_folder(voc_tree: Path) -> None:
    names = [f"thing{k}" for k in range(20)]
    (voc_tree / "classes.txt").write_text("\n".join(names))
    dataset = VOC2012(voc_tree, "train", tags="masks", classes=["thing11"])
    assert dataset.image_ids == ["2007_000002", "2007_000003"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_class_names_are_one_a_line(voc_tree: Path, encoding: str, end: str) -> None:
    """Names hold spaces, and files byte-order marks; neither moves a label."""
    names = ["traffic light", "fire hydrant", *(f"größe {k}" for k in range(18))]
    (voc_tree / "classes.txt").write_bytes(f"{end.join(names)}{end}{end}".encode(encoding))
    dataset = VOC2012(voc_tree, "train", tags="masks")
    assert dataset.classes == tuple(names)
    assert names_of(dataset, 1) == {names[VOC_CLASSES.index("dog")]}
    assert VOC2012(voc_tree, "train", "größe 9", tags="masks").classes == ("größe 9",)


def test_class_names_with_the_background(voc_tree: Path) -> None:
    names = ["background", *VOC_CLASSES]
    (voc_tree / "classes.txt").write_text("\n".join(names))
    with pytest.warns(InputNote, match="'background' is label 0"):
        assert VOC2012(voc_tree, "train").classes == VOC_CLASSES
    (voc_tree / "classes.txt").write_text("\n".join([*VOC_CLASSES[:19], "background"]))
    with pytest.raises(InputError, match=r"classes\.txt': 'background' is not the first line"):
        VOC2012(voc_tree, "train", tags="masks")
    (voc_tree / "classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(InputError, match=r"classes\.txt': classes given more than once: cat"):
        VOC2012(voc_tree, "train")
    for text in ("cat,dog\n", "cat; dog", "cat\tdog\n"):
        (voc_tree / "classes.txt").write_text(text)
        with pytest.raises(InputError, match=r"classes\.txt' has a single line, 'cat"):
            VOC2012(voc_tree, "train")
    (voc_tree / "classes.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"classes\.txt' names no class"):
        VOC2012(voc_tree, "train")


def test_masks_are_not_demanded(voc_tree: Path) -> None:
    """VOC's own train_aug without SBD's masks, say: the first photo has one, others have not."""
    (voc_tree / "SegmentationClass" / "2007_000002.png").unlink()
    dataset = VOC2012(voc_tree, "train_aug", with_masks=True)
    assert dataset.has_masks and len(dataset) == 4 and dataset.check() == []
    assert "mask" not in dataset[1] and dataset.mask_path(1) is None
    with pytest.raises(InputError, match="2007_000002 has no mask"):
        dataset.read_mask(1)
    with pytest.warns(InputNote, match="3 of 4 photos have true masks"):
        truth = dataset.where_masked()
    assert truth.image_ids == ["2007_000001", "2007_000003", "2007_000004"]
    assert all("mask" in item for item in truth)
    (voc_tree / "SegmentationClass" / "2007_000001.png").unlink()  # now the first has none
    assert VOC2012(voc_tree, "train").has_masks
    shutil.rmtree(voc_tree / "SegmentationClass")
    none = VOC2012(voc_tree, "train", with_masks=True)
    assert not none.has_masks and none.check() == []
    with pytest.raises(InputError, match="none of the 3 photos has a mask"):
        none.where_masked()


def test_lists_and_photos_of_other_programs(voc_tree: Path) -> None:
    """Ids with spaces, a byte-order mark, other endings, and other Unicode forms."""
    photos, lists = voc_tree / "JPEGImages", voc_tree / "ImageSets" / "Segmentation"
    for old, new in {"1.jpg": "my photo.jpg", "2.jpg": "gro\u0308ße.JPG", "3.jpg": "c.png"}.items():
        (photos / f"2007_00000{old}").rename(photos / new)
    (lists / "mine.txt").write_text("my photo\r\ngröße.jpg\r\nc 1\r\n", encoding="utf-8-sig")
    csv = voc_tree / "mine.csv"
    csv.write_text("image,labels\nmy photo.jpg,cat\ngröße,dog\nc.png,sofa\nother,cow\n")
    dataset = VOC2012(voc_tree, "mine", tags=csv)
    assert dataset.image_ids == ["my photo", "größe", "c"]
    assert [names_of(dataset, i) for i in range(3)] == [{"cat"}, {"dog"}, {"sofa"}]
    assert dataset.check() == []


@pytest.mark.voc6
@pytest.mark.parametrize("split, count", [("train", 437), ("val", 145), ("train_aug", 1037)])
def test_real_photos(voc6_root: Path, split: str, count: int) -> None:
    dataset = VOC2012(voc6_root, split, classes=SIX, with_masks=True)
    assert len(dataset) == count and dataset.tag_source == "csv"
    assert dataset.check(decode=split != "train_aug") == []
    masks = VOC2012(voc6_root, split, tags="masks")
    table = VOC2012(voc6_root, split, tags="csv")
    if split == "train_aug":
        # SBD leaves out some tagged objects, never the reverse.
        assert (masks.tags <= table.tags).all() and not torch.equal(masks.tags, table.tags)
    else:
        assert torch.equal(masks.tags, table.tags)


@pytest.mark.voc6
def test_palette_round_trip_on_a_real_mask(voc6_root: Path, tmp_path: Path) -> None:
    source = VOC2012(voc6_root, "train", with_masks=True).mask_path(0)
    save_mask(tmp_path / "mask.png", load_mask(source))
    with Image.open(source) as old, Image.open(tmp_path / "mask.png") as new:
        assert new.mode == old.mode == "P"
        assert np.array_equal(np.asarray(old), np.asarray(new))
        assert np.array_equal(np.asarray(old.convert("RGB")), np.asarray(new.convert("RGB")))
