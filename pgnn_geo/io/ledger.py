"""The supervision ledger: what a result was trained from, carried beside every result."""

from dataclasses import dataclass, fields, replace
from typing import Any

from pgnn_geo.errors import InputError


@dataclass(frozen=True)
class SupervisionLedger:
    """Everything a model, label folder or table was made from, the photographs aside.

    Args:
        tags (str, optional): Source of the image tags, e.g. :obj:`"image_labels.csv"`.
        weights (str, optional): Pretrained weights, e.g.
            :obj:`"VGG16_Weights.IMAGENET1K_FEATURES"`.
        boxes (str, optional): Source of boxes drawn by people, if any.
        saliency (str, optional): Saliency model, if any.
        masks (str, optional): Source of true masks used in *training*, if any.
        tuned_on_truth (tuple of str): Parameters chosen by looking at true masks; every number
            that depends on them is an *oracle* number. (default: :obj:`()`)
    """

    tags: str | None = None
    weights: str | None = None
    boxes: str | None = None
    saliency: str | None = None
    masks: str | None = None
    tuned_on_truth: tuple[str, ...] = ()

    def merged(self, other: "SupervisionLedger") -> "SupervisionLedger":
        """Return the ledger of something made from both."""
        changes: dict[str, Any] = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "tuned_on_truth":
                changes[field.name] = tuple(dict.fromkeys((*mine, *theirs)))
            elif mine and theirs and mine != theirs:
                changes[field.name] = f"{mine} + {theirs}"
            else:
                changes[field.name] = mine or theirs
        return replace(self, **changes)

    def to_list(self) -> list[str]:
        """Return one line per source, e.g. :obj:`["tags: image_labels.csv"]`."""
        lines = [
            f"{field.name}: {value}"
            for field in fields(self)
            if field.name != "tuned_on_truth" and (value := getattr(self, field.name))
        ]
        return lines + [f"tuned on truth: {name}" for name in self.tuned_on_truth]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON and checkpoints."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "tuned_on_truth": list(self.tuned_on_truth)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SupervisionLedger":
        """Rebuild a ledger from :meth:`to_dict`.

        Raises:
            InputError: If there is an unknown field.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"Supervision ledger has unknown field(s) {sorted(unknown)}.")
        return cls(**{**values, "tuned_on_truth": tuple(values.get("tuned_on_truth", ()))})
