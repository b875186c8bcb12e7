"""What `tables.py` makes, and about how long it takes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from _ablation_plan import TABLES
from _ablation_plan import Plan as AblationPlan

from pgnn_geo.app.config import RunConfig, Stage2Config
from pgnn_geo.app.recipes import recipe_file
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.nn.backbones import build_backbone

#: Passes through the backbone that a photo costs, as measured with VGG-16 in float32 on one core:
#: 577 s of the 437 photos of six classes for a frozen recipe, 16 and 24 minutes for a trained CAM
#: and P-GNN, where one pass takes half a second.
PASSES = {"frozen": 2.6, "cam": 5.0, "pgnn": 7.0, "epoch of stage 2": 0.4, "stage 2": 1.0}


@dataclass(frozen=True)
class Label:
    """Labels of one recipe with one backbone."""

    recipe: str
    backbone: str
    seed: int
    frozen: bool
    model: str  #: "pgnn", or "cam" for the recipe of the baseline

    @property
    def name(self) -> str:
        """How folders and tables call the recipe."""
        return Path(self.recipe).stem

    @property
    def title(self) -> str:
        """How tables call the row."""
        seed = "" if self.frozen else f", seed {self.seed}"
        return f"`{self.name}`, {self.backbone}{seed}"

    @property
    def folder(self) -> str:
        """Its folder within that of the tables."""
        return f"labels-{self.name}-{self.backbone}" + ("" if self.frozen else f"-seed{self.seed}")


class Plan:
    """All labels, and what the tables are called.

    Args:
        recipes (sequence of str): Names of recipes, or YAML files.
        backbones (sequence of str): Names of backbones, that of Table 2 first.
        seeds (sequence of int): Seeds of what is trained.
    """

    def __init__(
        self, recipes: Sequence[str], backbones: Sequence[str], seeds: Sequence[int]
    ) -> None:
        self.labels: list[Label] = []
        for backbone in backbones:
            for recipe in recipes:
                values = yaml.safe_load(recipe_file([f"--recipe={recipe}"]).read_text())
                frozen = values.get("flow", "frozen") == "frozen"
                self.labels += [
                    Label(recipe, backbone, seed, frozen, values.get("model", "pgnn"))
                    for seed in (seeds[:1] if frozen else seeds)
                ]
        self.titles = {1: "labels"}
        self.titles |= {i: f"networks, {name}" for i, name in enumerate(backbones[:2], start=2)}
        self.titles |= {int(t.name): t.title for t in TABLES if t.name in ("4", "5", "6")}


def estimate(plan: Plan, args: argparse.Namespace, photos: int) -> dict[str, float]:
    """Return the seconds that each part will take, without what is there already.

    Args:
        plan (Plan): What is made.
        args (argparse.Namespace): The arguments of `tables.py`.
        photos (int): Photos of the split.
    """
    once = {name: photos * seconds_of_a_pass(name) for name in args.backbones}
    found: dict[str, float] = {}
    for label in plan.labels if set(args.tables) & {1, 2, 3} else []:
        kind = "frozen" if label.frozen else label.model
        done = (args.out / label.folder / "metrics.json").is_file()
        found[f"labels of {label.title}"] = 0 if done else PASSES[kind] * once[label.backbone]
    options = yaml.safe_load(args.segment.read_text()) if args.segment else {}
    epochs = options.get("train", {}).get("epochs") or Stage2Config().train.epochs
    for number in {2, 3} & set(args.tables):
        if number - 2 >= len(args.backbones):
            continue
        backbone = args.backbones[number - 2]
        names = {label.name for label in plan.labels if label.backbone == backbone}
        folders = args.out / f"networks-{backbone}"
        left = (1 + 2 * len(names)) * len(args.seeds)
        left -= len(list(folders.glob("*/metrics.json")))
        each = PASSES["stage 2"] + epochs * PASSES["epoch of stage 2"]
        found[f"table {number}, {backbone}"] = max(0, left) * each * once[backbone]
    rows = AblationPlan(RunConfig(DataConfig("voc", args.root), "trained"))
    trained = {path.parent.name for path in args.out.glob("parts/train/*/model")}
    for number in {4, 5, 6} & set(args.tables):
        (table,) = (t for t in TABLES if t.name == str(number))
        names = {rows.of(row).variant for row in table.rows}
        cells = {f"{name}-seed{seed}" for name in names for seed in args.seeds} - trained
        found[f"table {number}"] = len(cells) * PASSES["pgnn"] * once[args.backbones[0]]
        trained |= cells
    return found


@torch.inference_mode()
def seconds_of_a_pass(backbone: str, size: int = 256) -> float:
    """Return the seconds that one photo takes in a backbone on this machine."""
    net = build_backbone(backbone, None).eval()  # the weights are of no matter
    photo = torch.zeros(1, 3, size, size)
    net(photo)
    start = time.perf_counter()
    net(photo)
    return time.perf_counter() - start


def hours(seconds: float) -> str:
    """Return a duration as people say it."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"
