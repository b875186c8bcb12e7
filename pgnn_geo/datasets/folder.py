"""A user's own photos with a CSV of tags."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pgnn_geo.datasets.base import TaggedDataset, Transform
from pgnn_geo.datasets.formats import BESIDE, FOLDERS, read_tags
from pgnn_geo.datasets.labels import multi_hot, select_classes
from pgnn_geo.datasets.listing import (
    first_of,
    list_masks,
    list_photos,
    same_form,
    told_apart,
)
from pgnn_geo.errors import InputError


class TaggedFolder(TaggedDataset):
    r"""Photos in a folder, nested as they may be, and the file that tags them.

    A photo's id is its path below :obj:`root` without the extension. Photos are turned upright
    as their EXIF orientation says, as photo viewers and labelling tools show them.

    Args:
        root (str or PathLike): The folder with the JPEG or PNG files.
        csv (str or PathLike): File with the columns :obj:`image,labels`; labels are separated by
            spaces, see :func:`~pgnn_geo.datasets.read_tag_csv`. An image is named by its path below
            :obj:`root`, or by its file name alone if no other photo has it; with or without the
            extension. Or a file of another tool, see :obj:`pgnn_geo.datasets.formats.FORMATS`; or
            :obj:`"folders"`: photos lie in a folder for each class; or :obj:`"beside"`: a file of
            labelme or labelImg lies beside each.
        classes (sequence of str or str, optional): All class names in the order of their labels.
            By default the names in the CSV, sorted.
        masks (str or PathLike, optional): Folder with a palette or grey PNG at :obj:`ID.png` for
            photos that have one, for measuring. It may lie below :obj:`root`.
        transform (callable, optional): Maps an item to an item.
        partial (bool): Accept photos that the CSV leaves out, as where each split has its own.
        with_masks (bool): Put masks into the items; otherwise :obj:`masks` only says what are no
            photos. (default: :obj:`True`)
        max_pixels (int, optional): Largest photo that is read, see
            :func:`~pgnn_geo.datasets.load_photo`.

    Raises:
        InputError: If the folder or the CSV cannot be read, rows are missing or name a photo
            twice, or a class is unknown.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        csv: str | os.PathLike[str],
        classes: Sequence[str] | str | None = None,
        masks: str | os.PathLike[str] | None = None,
        transform: Transform | None = None,
        partial: bool = False,
        with_masks: bool = True,
        max_pixels: int | None = None,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"root '{root}' is not a folder")
        if masks is not None and not Path(masks).is_dir():
            raise InputError(f"masks '{masks}' is not a folder")
        if str(csv) not in (FOLDERS, BESIDE) and not Path(csv).exists():
            raise InputError(
                f"there is no file of tags '{csv}'; write one with the columns image,labels, name "
                "another one (--tags), or have it looked for (--data auto)"
            )
        photos = list_photos(self.root, () if masks is None else (Path(masks),))
        files, self.tag_source, copies = read_tags(csv, self.root, photos)
        if not files:
            raise InputError(f"'{csv}' has no rows")
        if not partial and (left := sorted(set(photos) - set(files) - copies)):
            images = (
                ""
                if masks or not all(f.lower().endswith(".png") for f in left)
                else "; if they are label images, name their folder by masks (--masks)"
            )
            raise InputError(
                f"'{csv}': no row for photos in '{root}': {first_of(told_apart(left, files))}; "
                f"tag them, or move them away (in Python: partial=True){images}"
            )
        image_ids = [os.path.splitext(f)[0] if f in photos else f for f in files]
        if twice := [i for i, count in Counter(image_ids).items() if count > 1]:
            raise InputError(f"'{csv}': more than one row or file for {first_of(twice)}")
        tags = dict(zip(image_ids, files.values(), strict=True))
        names = sorted({name for labels in files.values() for name in labels})
        if not names:
            raise InputError(f"'{csv}' has no labels")
        if classes is not None:
            names = classes.split(",") if isinstance(classes, str) else list(classes)
            names = [same_form(name.strip()) for name in names]
        chosen = select_classes(classes, names)
        mask_files: list[Path | None] | None = None
        if masks is not None and with_masks:
            there = list_masks(Path(masks))
            mask_files = [there.get(same_form(image_id)) for image_id in image_ids]
            if not any(mask_files):
                raise InputError(
                    f"masks '{masks}' holds no mask of a photo: want PNG files named as photos, "
                    f"such as '{image_ids[0]}.png'"
                )
        super().__init__(
            image_ids,
            [self.root / f for f in files],
            chosen,
            multi_hot(tags, image_ids, chosen, f"'{csv}'"),
            masks=mask_files,
            upright=True,
            transform=transform,
            max_pixels=max_pixels,
        )
