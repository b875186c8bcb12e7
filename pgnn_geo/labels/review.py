r"""What to look at first: a confidence for each photo and class that needs no truth."""

import csv
import io
import os
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from pgnn_geo.io.files import atomic_write
from pgnn_geo.labels.seeds import background_score


class Reviewed(NamedTuple):
    """A class of a photo, and how sure its label is."""

    image: str  #: the photo's id
    name: str  #: the class
    confidence: float  #: see :func:`label_confidence`
    area: float  #: the share of the photo with this label


def label_confidence(
    attention: Tensor, background: float | None = 0.2, power: float | None = None
) -> Tensor:
    r"""Return how sure attention maps are of each class: the share of sure among possible places.

    .. math::
        q_k = \frac{\bigl| \{ x : A_k(x) > \tfrac{1}{2} (1 + b(x)) \} \bigr|}
        {\bigl| \{ x : A_k(x) > \tfrac{1}{2} b(x) \} \bigr|}

    with :math:`b` the background score. A class that is nowhere possible has confidence 0.

    Args:
        attention (torch.Tensor): Attention maps :obj:`[..., K, h, w]` in :math:`[0, 1]`, only of
            classes that the photo has.
        background, power (float, optional): See :func:`background_score`.

    Returns:
        Confidences :obj:`[..., K]` in :math:`[0, 1]`.

    Raises:
        InputError: If the background score is out of range.
    """
    score = background_score(attention, background, power)
    sure = (attention > (1 + score) / 2).sum(dim=(-2, -1))
    possible = (attention > score / 2).sum(dim=(-2, -1))
    return sure / possible.clamp(min=1)


def write_review(path: str | os.PathLike[str], rows: Iterable[Reviewed]) -> None:
    """Write ``image,class,confidence,area``, the least sure first, atomically.

    Args:
        path (str or PathLike): The CSV file.
        rows (iterable of Reviewed): A row for each photo and class; of equal confidence, the
            larger area is first.

    Raises:
        OSError: If it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "confidence", "area"])
    for row in sorted(rows, key=lambda r: (r.confidence, -r.area, r.image, r.name)):
        writer.writerow([row.image, row.name, f"{row.confidence:.3f}", f"{row.area:.3f}"])
    with atomic_write(path) as handle:
        handle.write(text.getvalue().encode())
