"""The recipes of `run`, and that `label` makes of a run's model what the run made of it."""

import json
import shutil
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml

from pgnn_geo.app import recipes
from pgnn_geo.app.cli import main
from pgnn_geo.app.config import LabelConfig
from pgnn_geo.datasets import DATASETS
from pgnn_geo.features import FrozenFeatureConfig
from pgnn_geo.io.masks import load_mask
from pgnn_geo.labels import REFINEMENTS
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.nn.kernels import KERNELS

TINY = ["--network.backbone=vgg_tiny", "--segment=off"]
#: Fitted in a hurry: what is made of the features is tested elsewhere.
FROZEN = [
    *TINY,
    "--features.size=64",
    "--evidence.positions=1000",
    "--evidence.iterations=5",
    "--evidence.classifier_rounds=1",
]
TRAINED = [
    *TINY,
    "--network.weights=null",
    "--network.freeze_stages=0",
    "--network.output_stride=8",
    "--train.size=64",
    "--train.epochs=2",
    "--train.workers=0",
    "--maps.size=64",
]
OPTIONS = {
    "best": FROZEN,
    "many": FROZEN,
    "paper": [*TRAINED, "--network.grid=2"],
    "cam": TRAINED,
    "trained": [*TRAINED, "--train.completion_epochs=1", "--train.completion.size=64"],
}


def settings(capsys, *options):
    """What `run` would do."""
    with pytest.raises(SystemExit):
        main(["run", "--root=x", *options, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def run(root, out, recipe, *options):
    main(
        ["run", f"--root={root}", f"--out={out}", f"--recipe={recipe}", *OPTIONS[recipe], *options]
    )


#: Modules whose functions were given a configuration, by the name of its class, in a run of "best".
GIVEN: dict[str, set[str]] = {}


@contextmanager
def following_configurations():
    """Note every module of the package that has a configuration among a function's arguments."""

    def note(frame, event, _):
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith("pgnn_geo."):
            for value in [*frame.f_locals.values()]:
                kind = type(value).__name__
                if kind.endswith("Config") and is_dataclass(value):
                    GIVEN.setdefault(kind, set()).add(name)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module")
def run_of(shapes_root, tmp_path_factory):
    """The folder of a run of each recipe, made when it is first asked for."""
    done = {}

    def run_of(recipe):
        if recipe not in done:
            out = tmp_path_factory.mktemp(recipe) / "run"
            with following_configurations() if recipe == "best" else nullcontext():
                run(shapes_root, out, recipe)
            done[recipe] = out
        return done[recipe]

    return run_of


@pytest.mark.parametrize("recipe", recipes.NAMES)
def test_label_gives_the_labels_of_the_run_byte_for_byte(recipe, run_of, shapes_root, tmp_path):
    out = run_of(recipe)
    name = "cam" if recipe == "cam" else "pgnn"
    model = out / name / "model"
    main(["label", f"--checkpoint={model}", f"--root={shapes_root}", f"--out={tmp_path / 'new'}"])
    made = sorted((out / name / "labels").iterdir())
    beside = {".pgnn_geo", "labels.json", "maps.npy", "review.csv"}
    beside |= {"explained.json"} if recipe != "cam" else set()
    beside |= {"cam.npy"} if recipe in ("best", "many") else set()
    assert {path.name for path in made if path.suffix != ".png"} == beside
    assert len(made) == 20 + len(beside)
    if recipe in ("best", "many"):  # whose evidence can be compared with prototypes
        entries = json.loads((out / name / "labels" / "explained.json").read_text())
        assert entries and all(entry["prototypes"] for entry in entries)
    assert [path.name for path in made] == sorted(p.name for p in (tmp_path / "new").iterdir())
    for path in made:
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"cam", "pgnn"} & metrics.keys() == {name}
    assert not (out / "features").exists()


def test_the_best_recipe_is_the_default_and_refines(capsys):
    found = settings(capsys)
    assert found == settings(capsys, "--recipe=best")
    assert found["flow"] == "frozen" and found["labels"]["refine"] == "par"


def test_the_paper_as_it_stands(capsys):
    found = settings(capsys, "--recipe", "paper")
    assert (found["flow"], found["patches"], found["network"]["grid"]) == ("trained", "grid", 4)
    assert found["network"]["class_embedding"] == "input"
    assert found["train"]["complementary"] == "erase"
    assert found["train"]["node_classes"] == "previous"
    assert (found["segment"], found["mutual"]) == ("deeplab", "literal")
    assert found["uncertain"] is None


@pytest.mark.parametrize("first", [True, False])
def test_options_win_over_the_recipe_wherever_they_stand(capsys, first):
    options = ["--labels.refine=none", "--recipe=best"]
    found = settings(capsys, *(options if first else options[::-1]))
    assert found["labels"]["refine"] == "none" and found["evidence"]["power"] == 2.0


def test_a_recipe_of_ones_own(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("evidence: {classifier_rounds: 2}\nlabels: {background: 0.35}\n")
    found = settings(capsys, f"--recipe={path}")
    assert found["evidence"]["classifier_rounds"] == 2 and found["labels"]["background"] == 0.35
    for name in ("worst", str(tmp_path)):
        with pytest.raises(SystemExit) as stop:
            main(["run", "--root=x", f"--recipe={name}"])
        assert stop.value.code == 2 and "There is no recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.epochs=5"], "train: of the trained flow"),
        (["--maps.size=64"], "maps: of the trained flow"),
        (["--network.weights=null"], "network.weights=None"),
        (["--network.output_stride=8"], "takes its backbone and weights alone"),
        (["--patches=grid"], "patches: of the trained flow"),
    ],
)
def test_settings_of_the_other_flow_are_refused(shapes_root, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stop:
        main(["run", f"--root={shapes_root}", f"--out={tmp_path / 'x'}", *FROZEN, *options])
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_kept_bank_serves_other_runs_and_changes_nothing(
    run_of, shapes_root, tmp_path, monkeypatch, capsys
):
    whole, kept, cache = run_of("best"), tmp_path / "kept", f"--cache={tmp_path / 'cache'}"
    capsys.readouterr()
    run(shapes_root, kept, "best", cache, "--baseline=true")
    assert "CAM IoU" in capsys.readouterr().out
    monkeypatch.setattr("pgnn_geo.features.frozen.photo_batches", None)  # none is decoded again
    run(shapes_root, tmp_path / "other", "best", cache, "--labels.background=0.3")
    for path in (kept / "pgnn").rglob("*.*"):
        assert path.read_bytes() == (whole / path.relative_to(kept)).read_bytes()
    differ = [
        not torch.equal(load_mask(path), load_mask(tmp_path / "other/pgnn/labels" / path.name))
        for path in (kept / "pgnn" / "labels").glob("*.png")
    ]
    assert any(differ)

    # The first step of the model is the baseline.
    command = ["label", f"--checkpoint={kept / 'pgnn' / 'model'}", f"--root={shapes_root}", cache]
    main([*command, f"--out={tmp_path / 'new'}", "--step=evidence"])
    for path in (kept / "cam" / "labels").iterdir():
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()
    with pytest.raises(SystemExit):
        main([*command, f"--out={tmp_path / 'x'}", "--maps.size=32"])
    assert "leave out --boxes and --maps" in capsys.readouterr().err


def test_a_model_without_a_classifier_of_positions_labels_as_its_run_did(
    shapes_root, tmp_path, capsys
):
    drawn = ["--evidence.whitening=0.1", "--evidence.evidence_window=3", "--baseline=true"]
    out, last = tmp_path / "run", "--evidence.classifier_rounds=0"
    run(shapes_root, out, "best", *drawn, last, "--labels.background=0.2")
    command = ["label", f"--checkpoint={out / 'pgnn' / 'model'}", f"--root={shapes_root}"]
    for name, options in (("pgnn", []), ("cam", ["--step=evidence"])):
        main([*command, f"--out={tmp_path / name}", *options])
        for path in (out / name / "labels").iterdir():
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes()
    entries = json.loads((out / "pgnn" / "labels" / "explained.json").read_text())
    assert entries and all(entry["prototypes"] for entry in entries)
    with pytest.raises(SystemExit):
        main([*command, f"--out={tmp_path / 'x'}", "--step=classifier"])
    assert "this model has none" in capsys.readouterr().err


OWN = """
from pgnn_geo.datasets import DATASETS, VOC2012
from pgnn_geo.labels import REFINEMENTS, PixelAdaptiveRefinement
from pgnn_geo.nn.kernels import KERNELS, Kernel

KERNELS.register("exponential")(Kernel(lambda cosine, power: (power * cosine).exp()))
DATASETS.register("drawings")(lambda data, masks: VOC2012(data.root, data.split, with_masks=masks))
REFINEMENTS.register("short")(lambda **options: PixelAdaptiveRefinement(1, (1,)))
"""


def test_parts_of_ones_own(shapes_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for registry in (DATASETS, KERNELS, REFINEMENTS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    Path("own_parts_of_test_recipes.py").write_text(OWN)
    Path("own.yaml").write_text(
        "imports: [own_parts_of_test_recipes]\ndata: drawings\n"
        "evidence: {kernel: exponential}\nlabels: {refine: short}\n"
    )
    for wrong, words in (
        (
            "--evidence.kernel=x",
            "unknown kernel 'x': want one of cosine, softmax, linear, exponential",
        ),
        ("--labels.refine=x", "unknown refinement 'x': want one of none, par, crf, short"),
        ("--data=x", "unknown data set 'x': want one of voc, folder, shapes, drawings"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["run", f"--root={shapes_root}", "--recipe=own.yaml", *FROZEN, wrong])
        assert stop.value.code == 2 and words in capsys.readouterr().err
    main(["run", f"--root={shapes_root}", "--recipe=own.yaml", *FROZEN, "--out=run"])
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["images"] == 20 and metrics["supervision"][0] == "tags: csv (drawings train)"
    model = Labeller.load("run/pgnn/model").model
    assert model.propagation.kernel == "exponential"
    record = json.loads(Path("run/pgnn/labels/labels.json").read_text())
    assert record["labels"]["refine"] == "short"


def test_the_best_recipe_says_what_the_configurations_have():
    recipe = yaml.safe_load(recipes.recipe_file([]).read_text())
    assert FrozenFeatureConfig(**recipe["features"]) == FrozenFeatureConfig()
    assert EvidenceConfig(**recipe["evidence"]) == EvidenceConfig()
    assert replace(LabelConfig(**recipe["labels"]), refine="none") == LabelConfig()


def test_each_step_is_given_no_more_than_it_needs(run_of):
    run_of("best")
    app = {f"pgnn_geo.app.{name}" for name in ("config", "pipeline")}
    assert GIVEN["RunConfig"] <= app | {"pgnn_geo.io.run_folder"}  # which writes it down
    before = {"pgnn_geo.app.cli", "pgnn_geo.app.cli_export"}
    assert 8 < len(set().union(*GIVEN.values()) - before) <= 13


def test_a_model_of_evidence_that_is_not_whole_is_refused(run_of, shapes_root, tmp_path, capsys):
    model = Path(shutil.copytree(run_of("best") / "pgnn" / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    ended = {**config["evidence"], "memory": 0, "memory_power": 14.0}  # of version 0.2.0
    (model / "config.json").write_text(json.dumps({**config, "evidence": ended}))
    assert Labeller.load(model).classes[0] == "fish"
    for change, words in (
        ({"format": "pgnn_geo evidence model 0"}, "of this version of the package"),
        ({"backbone_sha256": "0"}, "with other weights of vgg_tiny"),
        ({"sha256": "0"}, "copy both again"),
        ({"evidence": {"gone": 1}}, "does not fit this version"),
        ({"evidence": {**ended, "memory": 8192}}, "has a memory of labels, memory=8192"),
    ):
        other = Path(shutil.copytree(model, tmp_path / "other", dirs_exist_ok=True))
        (other / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(SystemExit):
            main(["label", f"--checkpoint={other}", f"--root={shapes_root}"])
        assert words in capsys.readouterr().err
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SystemExit):
        main(["label", f"--checkpoint={model}", f"--root={shapes_root}"])
    assert "cannot be read as an evidence model" in capsys.readouterr().err
