"""The documentation runs: its Python blocks, its command lines, and its list of public names."""

import importlib
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser, capture_parser
from PIL import Image

from pgnn_geo.app import cli
from pgnn_geo.datasets import VOC_CLASSES
from pgnn_geo.datasets.config import DATASETS
from pgnn_geo.io.exports.registry import EXPORTS
from pgnn_geo.io.masks import save_mask
from pgnn_geo.labels.refine import REFINEMENTS
from pgnn_geo.nn.backbones.entries import BACKBONES
from pgnn_geo.nn.kernels import KERNELS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages assume to be there: `photos` with a CSV, and VOC in `VOCdevkit/VOC2012`."""
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    (voc / "JPEGImages").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    rows = ["image,labels"]
    for index, name in enumerate(["cat", "dog", "cat", "dog", "cat", "dog"]):
        image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        image.save(tmp_path / "photos" / f"{index}.jpg")
        image.save(voc / "JPEGImages" / f"{index}.jpg")
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[10:30, 10:30] = VOC_CLASSES.index(name) + 1
        save_mask(voc / "SegmentationClass" / f"{index}.png", mask)
        rows.append(f"{index},{name}")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(rows) + "\n")
    (voc / "image_labels.csv").write_text("\n".join(rows) + "\n")
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("0\n1\n2\n3\n4\n5\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python_blocks_run(page: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Graph breaks show with this backend as well, and nothing waits for a compiler.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for registry in (BACKBONES, DATASETS, EXPORTS, KERNELS, REFINEMENTS):  # as they are after it
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    torch.manual_seed(0)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), scope)


def command_lines() -> list[str]:
    lines = []
    for page in [ROOT / "README.md", *PAGES]:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                lines += re.findall(r"pgnn-geo (?!\[).*?(?=$| &&)", line)
    return sorted(set(lines))


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    parser = capture_parser(partial(cli.main, []))
    parser.exit_on_error = False
    return parser


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(parser: ArgumentParser, line: str) -> None:
    parser.parse_args(shlex.split(line, comments=True)[1:])


PACKAGES = ("graph", "nn", "io", "datasets", "losses", "metrics", "viz", "features", "labels")
PACKAGES += ("training", "inference", "boxes", "boxes.training", "io.exports", "datasets.formats")
PAGE_OF = {"io.exports": "exports", "datasets.formats": "exports"}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented(package: str) -> None:
    names = importlib.import_module(f"pgnn_geo.{package}").__all__
    text = (ROOT / "docs" / "api" / f"{PAGE_OF.get(package, package.split('.')[0])}.md").read_text()
    missing = [name for name in names if not re.search(rf"\.{name}$", text, re.MULTILINE)]
    assert not missing


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *PAGES, *sorted(ROOT.glob("benchmarks/*.md"))], ids=name_of
)
def test_links_to_files_lead_to_one(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
