"""Tags that labels were made with besides those that photos have: a file beside the labels."""

import csv
import io
from pathlib import Path

from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write

ADDED_TAGS = "added_tags.csv"


def write_added_tags(labels: Path, dataset: TaggedDataset, tags: Tensor) -> None:
    """Write :obj:`labels/added_tags.csv`, ``image,class``, atomically.

    Args:
        labels (Path): The folder of the label images.
        dataset (TaggedDataset): The photos with their own tags.
        tags (torch.Tensor): These and the added ones, :obj:`[M, K]`.

    Raises:
        OSError: If it cannot be written.
    """
    assert dataset.tags is not None  # to which others were added
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class"])
    for i, k in (tags.bool() & ~dataset.tags.bool()).nonzero().tolist():
        writer.writerow([dataset.image_ids[i], dataset.classes[k]])
    with atomic_write(labels / ADDED_TAGS) as handle:
        handle.write(text.getvalue().encode())


def with_added_tags(dataset: TaggedDataset, labels: Path) -> TaggedDataset:
    """Return the photos with the tags that their labels were made with.

    Args:
        dataset (TaggedDataset): The photos with their own tags.
        labels (Path): The folder of the label images; without the file nothing was added.

    Raises:
        InputError: If the file is damaged or names other classes.
    """
    path = labels / ADDED_TAGS
    if dataset.tags is None or not path.is_file():
        return dataset
    photos = {name: i for i, name in enumerate(dataset.image_ids)}
    tags = dataset.tags.clone()
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                if (i := photos.get(row["image"])) is not None:  # a subset of the photos will do
                    tags[i, dataset.classes.index(row["class"])] = 1
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error!r}; want the columns image and class, and the classes "
            f"{', '.join(dataset.classes)}"
        ) from error
    return dataset.with_tags(tags)
