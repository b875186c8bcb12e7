"""The model card of a segmenter: scores, supervision and use, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from pgnn_geo.io.ledger import SupervisionLedger

_USE = """\
```python
import torchvision
from pgnn_geo import Segmenter

segmenter = Segmenter.from_pretrained("THIS_FOLDER_OR_HUB_ID")
photo = torchvision.io.decode_image("photo.jpg", "RGB", apply_exif_orientation=True)
mask = segmenter.label(photo)  # labels [H, W], uint8
probabilities = segmenter.predict(photo)  # [K + 1, H, W]
```

For a folder of photos:

```bash
pgnn-geo predict --checkpoint THIS_FOLDER_OR_HUB_ID --photos PHOTOS --out OUT
```
"""


def model_card(
    classes: Sequence[str], ledger: SupervisionLedger, metrics: Mapping[str, Any] | None = None
) -> str:
    """Return the card.

    Args:
        classes (sequence of str): Names of labels 1..K.
        ledger (SupervisionLedger): What the model was trained from.
        metrics (mapping, optional): Scores, such as
            :meth:`~pgnn_geo.metrics.SegmentationScores.to_dict`.
    """
    labels = ["| 0 | background |", *(f"| {k} | {c} |" for k, c in enumerate(classes, start=1))]
    supervision = [f"- {line}" for line in ledger.to_list()] or ["- nothing was recorded"]
    sections = {
        "Labels": ["| label | class |", "|---|---|", *labels],
        "Scores": _scores(metrics or {}) or ["None were measured."],
        "Trained from": supervision,
        "Use": _USE.splitlines(),
    }
    header = [
        "---",
        "library_name: pgnn-geo",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, weakly-supervised]",
        "---",
        "",
        "# Segmenter",
        "",
        "A network that finds each pixel's class in a photo, trained with `pgnn_geo`.",
    ]
    body = [line for name, lines in sections.items() for line in ("", f"## {name}", "", *lines)]
    return "\n".join([*header, *body]) + "\n"


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    """Return a table of the scores of every class and of all numbers beside them."""
    lines = []
    if per_class := metrics.get("per_class"):
        lines += ["| class | IoU | precision | recall |", "|---|---|---|---|"]
        for name, row in per_class.items():
            cells = [_percent(row.get(key)) for key in ("iou", "precision", "recall")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", "In per cent.", ""]
    plain = {k: v for k, v in metrics.items() if isinstance(v, (bool, int, float, str))}
    if plain:
        lines += ["| measure | value |", "|---|---|"]
        lines += [
            f"| {key} | {f'{value:.4g}' if isinstance(value, float) else value} |"
            for key, value in plain.items()
        ]
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
