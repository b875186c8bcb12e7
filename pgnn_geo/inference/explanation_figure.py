"""A picture of the edges that lead to one position."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pgnn_geo.inference.explanation import PositionExplanation


def explanation_figure(explanation: "PositionExplanation", lines: int = 5) -> "Figure":
    """Draw the heat of an explanation over its photos, and the strongest edges.

    The heat of the photo itself has a scale of its own, that of its partners another.

    Args:
        explanation (PositionExplanation): The explanation.
        lines (int): Edges that are drawn. (default: :obj:`5`)
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import ConnectionPatch, Rectangle

    photos, side = explanation.photos, explanation.heat.size(-1)
    figure = Figure(figsize=(3.2 * len(photos), 3.6), layout="constrained")
    axes = figure.subplots(1, len(photos), squeeze=False)[0]
    scales = [_peak(explanation.heat[:1]), *[_peak(explanation.heat[1:])] * (len(photos) - 1)]

    def centre(node: int) -> tuple[int, tuple[float, float]]:
        photo, rest = divmod(node, side * side)
        row, column = divmod(rest, side)
        height, width = photos[photo].shape[1:]
        return photo, ((column + 0.5) * width / side, (row + 0.5) * height / side)

    for number, (axis, photo, name) in enumerate(
        zip(axes, photos, explanation.image_ids, strict=True)
    ):
        height, width = photo.shape[1:]
        axis.imshow(photo.permute(1, 2, 0).numpy())
        axis.imshow(
            explanation.heat[number].numpy() / scales[number],
            extent=(0, width, height, 0),
            alpha=0.6,
            cmap="inferno",
            vmin=0,
            vmax=1,
        )
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    (height, width), (_, (x, y)) = photos[0].shape[1:], centre(explanation.node)
    size = width / side, height / side
    axes[0].add_patch(
        Rectangle((x - size[0] / 2, y - size[1] / 2), *size, fill=False, ec="white", lw=2)
    )
    edges, values = explanation.strongest(lines)
    for source, value in zip(edges[0].tolist(), values.tolist(), strict=True):
        number, place = centre(source)
        line = ConnectionPatch(
            (x, y),
            place,
            "data",
            "data",
            axesA=axes[0],
            axesB=axes[number],
            color="white",
            lw=0.5 + 3 * value / float(values[0]),
        )
        figure.add_artist(line)
    text = f"{explanation.class_name}: what speaks for the framed position"
    if explanation.prototypes:
        best = sorted(explanation.prototypes.items(), key=lambda item: -item[1])[:3]
        text += "\nprototypes: " + ", ".join(f"{name} {value:.2f}" for name, value in best)
    figure.suptitle(text, fontsize=10)
    return figure


def _peak(heat: Tensor) -> float:
    return max(float(heat.max()), 1e-12) if heat.numel() else 1.0
