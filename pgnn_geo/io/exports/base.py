"""What an export is: label images of photos in, the files of another tool out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Labelled(NamedTuple):
    r"""A photo and its label image.

    Shapes:
        - **mask:** :math:`(H, W)` uint8, 0 for background, 1..K, 255 for what is not decided
    """

    image_id: str
    photo: Path
    mask: NDArray[np.uint8]
    label: Path  # the file of the label image

    @property
    def file_name(self) -> str:
        """The photo's path below the folder that all share."""
        return self.image_id + self.photo.suffix


#: Writes the files of photos of these classes into a folder.
Writer = Callable[[Path, Iterable[Labelled], Sequence[str]], None]


@dataclass(frozen=True)
class Export:
    """A format of label images.

    Args:
        name (str): As :obj:`--export` has it.
        title (str): As people call it.
        write (callable): Writes it into a folder that is there; it is called with the folder, the
            photos, one at a time, and the names of the classes 1..K.
        packages (sequence of str): Modules that it needs, and that an extra of this package has.
            (default: :obj:`()`)
    """

    name: str
    title: str
    write: Writer
    packages: tuple[str, ...] = ()


def labels_in(mask: NDArray[np.uint8], num_classes: int) -> list[int]:
    """The classes that have a pixel, in ascending order."""
    there = np.bincount(mask.ravel(), minlength=256).nonzero()[0].tolist()
    return [label for label in there if 0 < label <= num_classes]
