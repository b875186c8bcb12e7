"""Tables and the figure of `cost.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pgnn_geo.app.cost import Rates, Work, predict_cost
from pgnn_geo.io.files import atomic_write
from pgnn_geo.labels.evidence import EvidenceConfig

#: Photos, classes and tags of a photo of data sets that people have.
SETS = {"VOC": (10_582, 20, 1.5), "COCO": (118_000, 80, 2.9), "a million": (1_000_000, 80, 2.9)}


def rates_table(found: list[dict[str, Any]]) -> str:
    """What one photo takes."""
    rows = []
    for each in found:
        work, rate = _read(each)
        name, size, stride = each["setting"].split()
        rows.append(
            {
                "backbone": f"`{name}`",
                "size": size,
                "stride": stride,
                "classes": work.classes,
                "features, ms": f"{1e3 * rate.features:,.0f}",
                "a propagation, ms": f"{1e3 * rate.within:,.1f}",
                "a pass, ms": f"{1e3 * rate.scored_fit:,.1f}",
                "label, ms": f"{1e3 * rate.labels:,.0f}",
                "fit of the classifier, s": f"{_classifier(work, rate):,.0f}",
                "disk, kB": f"{2 * work.channels * work.side**2 / 1e3:,.0f}",
                "memory, MB": f"{(rate.memory or 0) / 1e6:,.0f}",
            }
        )
    return markdown(rows)


def _read(found: dict[str, Any]) -> tuple[Work, Rates]:
    """Work and rates; JSON has plain dictionaries and lists."""
    work = Work(**{**found["work"], "evidence": EvidenceConfig(**found["work"]["evidence"])})
    return work, Rates(**found["rates"])


def _classifier(work: Work, rate: Rates) -> float:
    config = work.evidence
    return config.classifier_rounds * config.iterations * config.positions * rate.position


def sets_table(found: list[dict[str, Any]]) -> str:
    """What follows for whole data sets."""
    rows = []
    for name, (count, classes, each_tags) in SETS.items():
        for each in found:
            measured, rate = _read(each)
            work = replace(measured, photos=count, tags=round(count * each_tags), classes=classes)
            more = classes / measured.classes  # only the fits take longer with more classes
            rate = replace(
                rate, position=rate.position * more, tags=(rate.tags[0] * more, rate.tags[1] * more)
            )
            costs = predict_cost(work, rate)
            backbone, size, stride = each["setting"].split()
            memory = max(cost.memory or 0 for cost in costs)
            rows.append(
                {
                    "photos": f"{name}, {count:,}",
                    "backbone": f"`{backbone}`",
                    "size": size,
                    "stride": stride,
                    **{cost.stage: f"{cost.seconds / 3600:,.1f} h" for cost in costs},
                    "disk": f"{sum(cost.disk for cost in costs) / 1e9:,.1f} GB",
                    "memory": f"{memory / 1e9:,.1f} GB",
                }
            )
    return markdown(rows)


def counts_table(found: list[dict[str, Any]]) -> str:
    """Predicted, and as it was."""
    rows = [
        {
            "backbone, size, stride": each["setting"],
            "photos": f"{each['photos']:,}",
            "stage": stage["stage"],
            "seconds, predicted": f"{stage['seconds'][0]:,.1f}",
            "seconds": f"{stage['seconds'][1]:,.1f}",
            "disk, predicted": f"{stage['disk'][0]:,}",
            "disk": f"{stage['disk'][1]:,}",
            "memory, predicted": f"{(stage['memory'][0] or 0) / 1e6:,.0f} MB",
            "memory": f"{stage['memory'][1] / 1e6:,.0f} MB",
        }
        for each in found
        for stage in each["stages"]
    ]
    return markdown(rows)


def features_table(found: list[dict[str, Any]]) -> str:
    """Memory by how far the features were."""
    rows = [
        {
            "photos": f"{each['photos']:,}",
            "done": f"{int(mark):,}",
            "peak memory": f"{peak / 1e6:,.1f} MB",
        }
        for each in found
        for mark, peak in each["held"].items()
    ]
    return markdown(rows)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of the same columns as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory of each stage over the number of photos: predicted, and as they were."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{found[0]['setting']}, seconds by the {found[0]['machine']['clock']}")
    photos = [each["photos"] for each in found]
    for column, (what, label, unit) in enumerate(
        (("seconds", "seconds", 1), ("memory", "memory, MB", 1e6)), 1
    ):
        scale = "log" if what == "seconds" else "linear"
        axes = figure.add_subplot(1, 2, column, xscale="log", yscale=scale)
        axes.set(xlabel="photos", ylabel=label)
        for i, stage in enumerate(found[0]["stages"]):
            values = [each["stages"][i][what] for each in found]
            axes.plot(photos, [want / unit for want, _ in values], "--", color=f"C{i}")
            name = stage["stage"]
            axes.plot(photos, [got / unit for _, got in values], "o", color=f"C{i}", label=name)
        if scale == "linear":
            axes.set_ylim(bottom=0)
        axes.grid(which="both", alpha=0.2)
        axes.legend(title="dashed: predicted", fontsize="small")
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=120)
