"""What a run will take, beside what one took."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pgnn_geo.app.cli import main
from pgnn_geo.app.config import LabelConfig
from pgnn_geo.app.cost import Rates, StageCost, Work, describe_cost, measure_rates, predict_cost
from pgnn_geo.datasets import Shapes
from pgnn_geo.features import FeatureBank, FrozenFeatureConfig
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.nn.backbones import BackboneSource

NETWORK = ("--network.backbone=vgg_tiny", "--network.weights=DEFAULT")
SMALL = ("--features.size=64", "--evidence.iterations=5", "--evidence.positions=500")
#: How far the seconds may be off on a machine that does other things as well.
FACTOR = 4


def predicted(text: str) -> dict[str, int]:
    """The exact bytes on disk by stage, out of what `doctor` printed."""
    found = {}
    for line in text.splitlines():
        stage, colon, rest = line.strip().partition(": ")
        if colon and " bytes)" in rest:
            found[stage] = int(rest.split("(")[1].split(" bytes)")[0].replace(",", ""))
    return found


def test_disk_is_what_the_run_leaves(
    shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", f"--root={shapes_root}", "--recipe=many", *NETWORK, *SMALL])
    said = capsys.readouterr().out
    assert "20 photos" in said and "192 channels on 8 x 8 positions" in said
    out, cache = tmp_path / "run", tmp_path / "cache"
    options = ["--segment=off", "--recipe=many", "--labels.refine=none", f"--cache={cache}"]
    main(["run", f"--root={shapes_root}", f"--out={out}", *options, *NETWORK, *SMALL])
    (bank,) = cache.glob("*.npy")
    maps, cam = (out / "pgnn" / "labels" / f"{name}.npy" for name in ("maps", "cam"))
    labels = maps.stat().st_size + cam.stat().st_size
    assert predicted(said) == {"features": bank.stat().st_size, "labels": labels}


@pytest.mark.parametrize("shape", [(1, 3, 1), (437, 1024, 32), (12345, 192, 8)])
def test_size_of_a_bank(shape: tuple[int, int, int], tmp_path: Path) -> None:
    count, channels, side = shape
    path = tmp_path / "bank.npy"
    np.lib.format.open_memmap(path, "w+", np.float16, (count, side, side, channels))  # sparse
    assert FeatureBank.file_size(*shape) == path.stat().st_size


def test_seconds_by_the_formula() -> None:
    evidence = EvidenceConfig(prototype_rounds=2, classifier_rounds=3, iterations=10, positions=100)
    work = Work(7, 9, 5, 3, 4, evidence)
    rates = Rates(1.0, 2.0, 20.0, 3.0, 30.0, 0.5, (1000.0, 2000.0), 4.0, 10**6)
    costs = {cost.stage: cost for cost in predict_cost(work, rates)}
    assert costs["features"].seconds == 7
    # Evidence of tags, two prototypes, maps between, three rounds of propagation and positions.
    passes = 7 * (3 * 20 + (2 + 2 + 1 + 3) * 30)
    assert costs["evidence"].seconds == passes + 3 * 10 * 100 * 0.5 + 1000 + 7 * 2000
    assert costs["labels"].seconds == 7 * (2 + 3 + 4)
    memory = costs["features"].memory, costs["evidence"].memory, costs["labels"].memory
    assert memory == (10**6, 10**6 + 84 + 8 * 9 * 16 + 2400 + 16 * 100 * 6, 10**6 + 8 * 9 * 16)
    objects = replace(work, evidence=replace(evidence, objectness=True))
    more = predict_cost(objects, rates)[1].seconds - costs["evidence"].seconds
    assert more == 7 * 5 * (20 + 30)


def test_fit_on_coarser_patches() -> None:
    config = EvidenceConfig()
    assert Work(2, 2, 2, 8, 32, config).fit_side == 32
    assert Work(2, 2, 2, 8, 32, replace(config, fit_grid=16)).fit_side == 16
    assert Work(2, 2, 2, 8, 32, replace(config, grid=8, fit_grid=16)).fit_side == 8
    assert Work(2, 2, 2, 8, 32, replace(config, fit_grid=16)).positions == 512
    assert Work(10**6, 2, 2, 8, 32, config).positions == config.positions


def test_a_prediction_is_said_in_units_of_people() -> None:
    costs = [StageCost("features", 3 * 86400, 2 * 10**12, 3 * 10**9), StageCost("x", 9000, 0, None)]
    lines = describe_cost(Work(10**6, 10**6, 20, 1024, 32, EvidenceConfig()), costs)
    assert lines[0].startswith("stage 1 of 1,000,000 photos with 1,000,000 tags of 20 classes")
    assert "features: 3 days, disk 2 TB (2,000,000,000,000 bytes), memory 3 GB" in lines[1]
    assert lines[2] == "  x: 2.5 hours" and "in all: 3.1 days" in lines[3]


@pytest.mark.parametrize(
    "options", [["--recipe=trained"], ["--recipe=paper"], ["--network.weights=null"]]
)
def test_nothing_is_predicted_where_nothing_is_frozen(
    options: list[str], shapes_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", f"--root={shapes_root}", "--network.backbone=vgg_tiny", *options])
    said = capsys.readouterr().out
    assert "no problem found" in said and "stage 1" not in said


def test_a_recipe_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    for text in ("[1, 2]", "a: [", "- x"):
        path.write_text(text)
        with pytest.raises(SystemExit) as stop:
            main(["doctor", f"--recipe={path}"])
        assert stop.value.code == 2 and f"{path} cannot be read" in capsys.readouterr().err


def test_what_the_frozen_flow_cannot_do_is_a_problem(
    shapes_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = Shapes(shapes_root, "train", num_images=(20, 10), size=64).classes[0]
    for option, words in ((f"--classes={name}", "photos have the tag"), ("--labels.refine=x", "x")):
        with pytest.raises(SystemExit) as stop:
            main(["doctor", f"--root={shapes_root}", *NETWORK, *SMALL, option])
        said = capsys.readouterr().out
        assert stop.value.code == 1 and "no problem found" not in said
        assert "problem: " in said and words in said


@pytest.mark.slow
def test_seconds_beside_a_run(tmp_path: Path) -> None:
    """Within the factor that docs/guide/cost.md states."""
    photos = Shapes(tmp_path / "photos", "train", num_images=(150, 1), size=128)
    features, labels = FrozenFeatureConfig(size=256), LabelConfig(refine="par")
    source, config = BackboneSource("vgg_tiny", "DEFAULT"), EvidenceConfig()
    work, rates = measure_rates(photos, source, features, config, labels)
    costs = {cost.stage: cost.seconds for cost in predict_cost(work, rates)}
    options = ["--segment=off", *NETWORK, f"--out={tmp_path / 'run'}"]
    main(["run", f"--root={tmp_path / 'photos'}", *options])
    took = {s["stage"]: s["seconds"] for s in json.loads((tmp_path / "run/cost.json").read_text())}
    pairs = [
        (costs["features"] + costs["evidence"], took["features and evidence"]),
        (costs["labels"], took["label pgnn/labels"]),
    ]
    print(work, rates, pairs)
    for want, found in pairs:
        assert found / FACTOR < want < found * FACTOR
