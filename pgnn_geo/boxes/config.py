"""Which boxes: where the patches of a graph come from if they are boxes."""

from dataclasses import dataclass
from typing import Literal, get_args

from pgnn_geo.errors import InputError

BoxSourceName = Literal["attention", "detector", "file"]


@dataclass(frozen=True)
class BoxConfig:
    """Patches that are boxes, see :mod:`pgnn_geo.boxes.patches`.

    Args:
        source (str): Where boxes come from: :obj:`"attention"`, the maps of the run's own CAM,
            completed by propagation; :obj:`"detector"`, a detector trained on the run's tags; or
            :obj:`"file"`.
        file (str, optional): COCO results, see :class:`~pgnn_geo.boxes.BoxFile`.
        top_k (int): Boxes of what is seen of a photo that become nodes, the best ones; what they
            leave is one more.
        size (int): Positions per side of a box's patch.

    Raises:
        InputError: If a value is out of range, or a file is given without need or is missing.
    """

    source: BoxSourceName = "attention"
    file: str | None = None
    top_k: int = 5
    size: int = 7

    def __post_init__(self) -> None:
        if self.source not in get_args(BoxSourceName):
            raise InputError(f"boxes.source={self.source!r}: want one of {get_args(BoxSourceName)}")
        if self.source == "file" and self.file is None:
            raise InputError("boxes.source='file' needs boxes.file, COCO results")
        if self.source != "file" and self.file is not None:
            raise InputError(
                f"boxes.file='{self.file}' wants boxes.source='file', not '{self.source}'"
            )
        if self.top_k < 1 or self.size < 1:
            raise InputError(f"boxes.top_k={self.top_k}, boxes.size={self.size}: want 1 or more")
