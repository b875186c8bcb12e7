"""PASCAL VOC 2012 segmentation, SBD's augmented split included."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torchvision.datasets import VOCSegmentation

from pgnn_geo.datasets.base import TaggedDataset, Transform
from pgnn_geo.datasets.labels import (
    multi_hot,
    read_classes,
    read_tag_masks,
    read_tag_xml,
    select_classes,
)
from pgnn_geo.datasets.listing import first_of, list_masks, match_rows, same_form
from pgnn_geo.datasets.photo_file import PHOTO_SUFFIXES
from pgnn_geo.datasets.tag_csv import read_tag_csv, read_text
from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import VOC_CLASSES

_AUGMENTED = ("train_aug", "trainaug")


class VOC2012(TaggedDataset):
    r"""`PASCAL VOC 2012 <http://host.robots.ox.ac.uk/pascal/VOC/voc2012/>`_ photos and tags.

    Reads the standard layout: :obj:`JPEGImages`, :obj:`ImageSets/Segmentation/SPLIT.txt`, and
    :obj:`Annotations`, :obj:`image_labels.csv` or :obj:`SegmentationClass` for the tags. A
    :obj:`classes.txt` beside them (one name a line, label 1 first) replaces VOC's class names.
    Photos may be PNG files too. They are taken as stored, whatever their EXIF orientation: VOC's
    masks were drawn that way.

    Args:
        root (str or PathLike): The VOC2012 folder, VOCdevkit, or the folder that holds VOCdevkit.
        split (str): :obj:`"train"`, :obj:`"val"`, :obj:`"trainval"`, :obj:`"train_aug"` (also
            :obj:`"trainaug"`; the SBD masks in :obj:`SegmentationClassAug` or
            :obj:`SegmentationClass`), or :obj:`"test"`, which has no masks, and tags only if a
            CSV is named.
        classes (sequence of str or str, optional): Restrict the task to these: only images with
            at least one of them are kept, they become the labels 1..K in the order given, and
            other foreground becomes 255 in masks.
        tags (str or PathLike): :obj:`"annotations"` (object names of the XML files, *difficult*
            ones included), :obj:`"csv"` (:obj:`image_labels.csv`), :obj:`"masks"` (classes with a
            pixel), the path of a CSV, or :obj:`"auto"`: the first of the three that the folder
            has. :attr:`tag_source` says which it was. The sources agree on VOC's own masks; SBD's
            leave out some tagged objects.
        with_masks (bool): Put masks into the items of photos that have one (for measuring only).
        transform (callable, optional): Maps an item to an item.
        download (bool): Have :class:`torchvision.datasets.VOCSegmentation` download and unpack
            VOC 2012 into :obj:`root` if it is not there. SBD is not part of it.
        max_pixels (int, optional): Largest photo that is read, see
            :func:`~pgnn_geo.datasets.load_photo`.

    Raises:
        InputError: If :obj:`root` is not VOC, the split or a class is unknown, or the tags do not
            cover the split.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        classes: Sequence[str] | str | None = None,
        tags: str | os.PathLike[str] = "auto",
        with_masks: bool = False,
        transform: Transform | None = None,
        download: bool = False,
        max_pixels: int | None = None,
    ) -> None:
        self.root = _find_root(Path(root), download)
        self.split = split
        names = self.root / "classes.txt"
        catalogue = read_classes(names) if names.is_file() else VOC_CLASSES
        chosen = select_classes(classes, catalogue)
        columns = [catalogue.index(name) for name in chosen]

        photos = _read_split(self.root, split)
        image_ids, folders = list(photos), ["SegmentationClass"]
        if with_masks and split == "test":
            raise InputError("with_masks: the test split has no masks")
        if split in _AUGMENTED:
            folders.append("SegmentationClassAug")
        there = {} if split == "test" else _masks(self.root, folders)
        masks = [there.get(same_form(image_id)) for image_id in image_ids]
        self.tag_source, hot = self._read_tags(tags, photos, masks, catalogue, max_pixels)
        if hot is not None:
            hot = hot[:, columns]
            if classes is not None:
                keep = hot.any(dim=1).nonzero().flatten().tolist()
                image_ids, masks = [image_ids[i] for i in keep], [masks[i] for i in keep]
                hot = hot[keep]
            if not image_ids:
                raise InputError(f"'{self.root}': no image of '{split}' has any of {chosen}")
        super().__init__(
            image_ids,
            [self.root / "JPEGImages" / photos[image_id] for image_id in image_ids],
            chosen,
            hot,
            masks=masks if with_masks else None,
            mask_labels=[column + 1 for column in columns],
            num_labels=len(catalogue),
            transform=transform,
            max_pixels=max_pixels,
        )
        self._has_masks = any(masks)

    @property
    def has_masks(self) -> bool:
        """Whether the folder holds masks of photos of the split, even if none were asked for."""
        return self._has_masks

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({len(self)}, split={self.split!r}, "
            f"classes={len(self.classes)}, tag_source={self.tag_source!r})"
        )

    def _read_tags(
        self,
        tags: str | os.PathLike[str],
        photos: dict[str, str],
        masks: list[Path | None],
        catalogue: Sequence[str],
        max_pixels: int | None,
    ) -> tuple[str | None, Tensor | None]:
        image_ids = list(photos)
        folder, table = self.root / "Annotations", self.root / "image_labels.csv"
        source = os.fspath(tags)
        if source == "auto":
            if self.split == "test":
                return None, None
            source = "annotations" if folder.is_dir() else "csv" if table.is_file() else "masks"
        if source == "annotations":
            found, where = read_tag_xml(folder, image_ids), folder
        elif source == "masks":
            there = {i: mask for i, mask in zip(image_ids, masks, strict=True) if mask}
            found = read_tag_masks(there, catalogue, max_pixels)
            where = self.root / "SegmentationClass"
        else:
            where = table if source == "csv" else Path(source)
            if not where.is_file():
                raise InputError(
                    f"tags: no CSV '{where}'; want 'auto', 'annotations', 'csv', 'masks' or a file"
                )
            rows, source = match_rows(read_tag_csv(where), photos.values(), where), "csv"
            found = {i: rows[file] for i, file in photos.items() if file in rows}
        return source, multi_hot(found, image_ids, catalogue, f"'{where}'")


def _find_root(root: Path, download: bool) -> Path:
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")

    def find() -> Path | None:
        needed = ("JPEGImages", "ImageSets/Segmentation")
        return next((c for c in candidates if all((c / n).is_dir() for n in needed)), None)

    found = find()
    if found is None and download:
        VOCSegmentation(os.fspath(root), year="2012", image_set="trainval", download=True)
        found = find()
    if found is None:
        looked = ", ".join(f"'{candidate}'" for candidate in candidates)
        raise InputError(
            f"root '{root}' is not VOC: looked for the folders JPEGImages and "
            f"ImageSets/Segmentation in {looked}"
        )
    return found


def _masks(root: Path, folders: Sequence[str]) -> dict[str, Path]:
    """The masks in folders of VOC; where two have one of an image, the later's."""
    found: dict[str, Path] = {}
    for folder in folders:
        if (root / folder).is_dir():
            found |= list_masks(root / folder)
    return found


def _read_split(root: Path, split: str) -> dict[str, str]:
    """The ids of a split, and the file of each in :obj:`JPEGImages`."""
    folder = root / "ImageSets" / "Segmentation"
    names = _AUGMENTED if split in _AUGMENTED else (split,)
    path = next((p for n in names if (p := folder / f"{n}.txt").is_file()), None)
    if path is None:
        raise InputError(
            f"split {split!r}: no '{folder / names[0]}.txt'; "
            f"there are: {', '.join(sorted(p.stem for p in folder.glob('*.txt')))}"
        )
    files = {}
    for name in sorted(os.listdir(root / "JPEGImages"), key=lambda name: name.endswith(".jpg")):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PHOTO_SUFFIXES:  # where there are two, the .jpg
            files[same_form(stem)] = name
    image_ids = []
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        # Lists of SBD also come as '/JPEGImages/ID.jpg /SegmentationClassAug/ID.png'.
        whole, first = (_image_id(text) for text in (line, line.split()[0]))
        image_ids.append(whole if same_form(whole) in files else first)
    if not image_ids:
        raise InputError(f"'{path}' names no image")
    if twice := [i for i, count in Counter(map(same_form, image_ids)).items() if count > 1]:
        raise InputError(f"'{path}': images named more than once: {first_of(twice)}")
    return {i: files.get(same_form(i), f"{i}.jpg") for i in image_ids}


def _image_id(text: str) -> str:
    name = text.rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in PHOTO_SUFFIXES else name
