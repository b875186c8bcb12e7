"""True masks in place of the pseudo-labels of some photos, for people who have drawn a few."""

from collections.abc import Sequence
from pathlib import Path

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.datasets.listing import first_of
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import mark_results
from pgnn_geo.io.masks import save_mask


def choose_photos(
    dataset: TaggedDataset, data: DataConfig, share: float
) -> tuple[TaggedDataset, list[str]]:
    """Return the photos that have true masks, and which photos to learn from these.

    The choice is spread evenly over all photos and depends on nothing else.

    Args:
        dataset (TaggedDataset): The photos.
        data (DataConfig): Where their true masks are.
        share (float): Share of the photos, in :math:`[0, 1]`.

    Raises:
        InputError: If a chosen photo has no true mask, or the share gives no photo.
    """
    if not data.has_masks():
        raise InputError(f"true_masks={share}: these photos have no true masks")
    truth, names = data.build(with_masks=True), dataset.image_ids
    chosen = [name for i, name in enumerate(names) if int((i + 1) * share) > int(i * share)]
    if not chosen:
        raise InputError(f"true_masks={share}: that is no photo out of {len(names)}; want more")
    there = {name for i, name in enumerate(truth.image_ids) if truth.mask_path(i) is not None}
    if missing := [name for name in chosen if name not in there]:
        raise InputError(
            f"true_masks={share} takes one of every {1 / share:.3g} photos; these have no mask: "
            f"{first_of(missing)}"
        )
    return truth, chosen


def with_true_masks(
    dataset: TaggedDataset, truth: TaggedDataset, chosen: Sequence[str], out: Path
) -> TaggedDataset:
    """Return photos whose labels are true masks where these are chosen.

    Args:
        dataset (TaggedDataset): The photos with pseudo-labels.
        truth (TaggedDataset): These photos, or some of them, with true masks.
        chosen (sequence of str): The ids of the photos that are chosen.
        out (Path): Where their true masks are written in the code of label images.
    """
    mark_results(out)
    place = {name: i for i, name in enumerate(truth.image_ids)}
    drawn = {name: out / f"{name}.png" for name in chosen}
    for name, path in drawn.items():
        if not path.is_file():
            save_mask(path, truth.read_mask(place[name]))
    paths = []
    for i, name in enumerate(dataset.image_ids):
        label = drawn.get(name, dataset.mask_path(i))
        assert label is not None  # labels are of all photos
        paths.append(label)
    return dataset.with_masks(paths)
