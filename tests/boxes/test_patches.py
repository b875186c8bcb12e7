"""`pgnn-geo run --patches` as its user meets it, on a small set."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from pgnn_geo.app import pipeline
from pgnn_geo.app.cli import main
from pgnn_geo.app.config import RunConfig
from pgnn_geo.boxes import (
    AttentionBoxes,
    BoxFile,
    ImageBoxes,
    PhotoBoxes,
    detection,
    patches,
    write_boxes,
)
from pgnn_geo.boxes.config import BoxConfig
from pgnn_geo.boxes.proposals import ProposalConfig
from pgnn_geo.datasets import Shapes
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask
from pgnn_geo.labels import attention_maps
from pgnn_geo.training.attention import AttentionModule, AttentionTrainingConfig

TINY = [
    "--network.backbone=vgg_tiny",
    "--network.weights=null",
    "--network.freeze_stages=0",
    "--network.output_stride=8",
    "--train.size=64",
    "--train.epochs=1",
    "--train.completion_epochs=1",
    "--train.completion.size=64",
    "--train.workers=0",
    "--segment=off",
]
MAPS = ["--maps.size=64", "--maps.partners=1"]
RECIPE = ["--recipe=trained", "--baseline=true", "--labels.refine=none"]
RUN = [*RECIPE, *TINY, *MAPS, "--patches=boxes", "--boxes.size=3"]


@pytest.fixture(scope="module")
def photos(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


@pytest.fixture(scope="module")
def drawn(photos, tmp_path_factory):
    """A file of boxes with none in the first photo; somebody drew them in another set."""
    path = tmp_path_factory.mktemp("drawn") / "drawn.json"
    boxes = {name: ImageBoxes.empty() for name in photos.image_ids}
    for name, tags in list(zip(photos.image_ids, photos.tags, strict=True))[1:]:
        classes = tags.nonzero()[:, 0] + 1
        start = torch.arange(len(classes)) * 5
        corners = torch.stack([start, start + 3, start + 40, start + 30], dim=1).float()
        boxes[name] = ImageBoxes(corners, classes, torch.linspace(0.9, 0.4, len(classes)))
    ledger = SupervisionLedger(tags="csv (voc train)", boxes="auxiliary (drawn)")
    write_boxes(path, boxes, photos.classes, ledger)
    return path


def run(root, out, *options):
    main(["run", f"--root={root}", f"--out={out}", *RUN, *map(str, options)])


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def from_attention(shapes_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("attention") / "run"
    run(shapes_root, out, "--boxes.top_k=2")
    return out


@pytest.fixture(scope="module")
def from_file(shapes_root, drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("file") / "run"
    run(shapes_root, out, "--boxes.source=file", f"--boxes.file={drawn}")
    return out


def test_boxes_of_the_maps_of_the_cam(from_attention, photos):
    content = json.loads((from_attention / "config.json").read_text())
    assert content["patches"] == {"source": "attention", "file": None, "top_k": 2, "size": 3}
    metrics = json.loads((from_attention / "metrics.json").read_text())
    assert metrics["supervision"] == ["tags: csv (voc train)"]
    model = load_attention_model(from_attention / "pgnn" / "model").model
    assert model.config["box_size"] == 3 and model.config["top_k"] == 2
    cam, _, ledger, _ = load_attention_model(from_attention / "cam" / "model")
    assert cam.config["box_size"] is None and cam.config["layers"] == 0

    maps = replace(AttentionTrainingConfig().completion, size=64)
    expected = AttentionBoxes(attention_maps(cam, photos, maps), photos)
    kept = BoxFile(from_attention / "boxes.json", photos)
    assert kept.ledger == ledger
    for name in photos.image_ids:
        assert torch.equal(kept(name).boxes, expected(name).boxes)
    count = sum(len(expected(name)) for name in photos.image_ids)
    assert metrics["boxes"]["boxes_per_photo"] == pytest.approx(count / 20, abs=0.01)
    assert metrics["boxes"]["source"] == "attention" and metrics["boxes"]["top_k"] == 2


def test_labels_are_of_tagged_classes(from_attention, from_file, photos):
    for out in (from_attention, from_file):
        for name, tags in zip(photos.image_ids, photos.tags, strict=True):
            mask = load_mask(out / "pgnn" / "labels" / f"{name}.png")
            assert mask.shape == (64, 64)
            assert set(mask.unique().tolist()) <= {0, *(tags.nonzero()[:, 0] + 1).tolist()}


def test_what_was_made_with_drawn_boxes_says_so(from_file, photos):
    wanted = ["tags: csv (voc train)", "boxes: auxiliary (drawn)"]
    metrics = json.loads((from_file / "metrics.json").read_text())
    assert metrics["supervision"] == wanted and metrics["boxes"]["photos_without"] == 1
    ledgers = [load_attention_model(from_file / m / "model").ledger for m in ("cam", "pgnn")]
    assert ledgers[0].boxes is None and ledgers[1].to_list() == wanted
    for model, boxes in (("cam", None), ("pgnn", "auxiliary (drawn)")):
        record = json.loads((from_file / model / "labels" / "labels.json").read_text())
        assert record["supervision"]["boxes"] == boxes and ("boxes" in record) == bool(boxes)
    assert BoxFile(from_file / "boxes.json", photos).ledger.boxes == "auxiliary (drawn)"


def test_a_run_that_was_cut_off_is_completed(
    from_attention, shapes_root, tmp_path, monkeypatch, capsys
):
    out, step = tmp_path / "again", AttentionModule.training_step

    def dies(self, batch, batch_idx):
        if self.boxes is not None and self.current_epoch == 1:
            raise KeyError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(AttentionModule, "training_step", dies)
        with pytest.raises(KeyError, match="killed"):
            run(shapes_root, out, "--boxes.top_k=2")
    made = (out / "boxes.json").stat().st_mtime_ns
    assert not (out / "pgnn" / "model").exists()
    capsys.readouterr()
    run(shapes_root, out, "--boxes.top_k=2")
    printed = capsys.readouterr().out
    assert "pgnn  epoch 2/2" in printed and "epoch 1/2" not in printed
    assert (out / "boxes.json").stat().st_mtime_ns == made
    for name in ("metrics.json", "boxes.json"):
        assert (out / name).read_bytes() == (from_attention / name).read_bytes()
    for path in (from_attention / "pgnn" / "labels").glob("*.png"):
        assert path.read_bytes() == (out / "pgnn" / "labels" / path.name).read_bytes()


def test_another_configuration_or_other_boxes_are_refused(
    from_file, shapes_root, drawn, tmp_path, capsys
):
    out = shutil.copytree(from_file, tmp_path / "out")
    command = ["run", f"--root={shapes_root}", f"--out={out}", *RUN, "--boxes.source=file"]
    error = error_of(capsys, *command, f"--boxes.file={drawn}", "--boxes.top_k=4")
    assert "patches.top_k: 5 there, 4 asked for" in error
    grid = [option for option in RUN if "box" not in option]
    error = error_of(capsys, "run", f"--root={shapes_root}", f"--out={out}", *grid)
    assert "patches: {'source': 'file'" in error and "'none' asked for" in error

    other = tmp_path / "drawn.json"  # the same name, another content
    entries = json.loads(drawn.read_text())[3:]
    config = json.loads((out / "config.json").read_text())
    config["patches"]["file"] = str(other)
    (out / "config.json").write_text(json.dumps(config))
    (out / "metrics.json").unlink()
    other.write_text(json.dumps(entries))
    error = error_of(capsys, *command, f"--boxes.file={other}")
    assert "holds boxes made from something else (sha256" in error


def test_label_needs_the_boxes(from_file, shapes_root, drawn, tmp_path, capsys):
    labels, checkpoint = tmp_path / "labels", from_file / "pgnn" / "model"
    command = ["label", f"--checkpoint={checkpoint}", f"--root={shapes_root}", *MAPS]
    assert "pass the photos' with --boxes FILE" in error_of(capsys, *command, f"--out={labels}")
    main([*command, f"--out={labels}", f"--boxes={drawn}"])
    for path in labels.glob("*.png"):
        assert path.read_bytes() == (from_file / "pgnn" / "labels" / path.name).read_bytes()
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(drawn.read_text())[3:]))
    again = [*command, f"--out={labels}", f"--boxes={other}"]
    assert "made from something else" in error_of(capsys, *again)
    cam = ["label", f"--checkpoint={from_file / 'cam' / 'model'}", f"--root={shapes_root}"]
    error = error_of(capsys, *cam, f"--out={tmp_path / 'cam'}", f"--boxes={drawn}")
    assert "are no boxes; leave out" in error
    other.write_text(json.dumps(json.loads(drawn.read_text())[3:]))
    main([*command, f"--out={tmp_path / 'new'}", f"--boxes={other}"])
    record = json.loads((tmp_path / "new" / "labels.json").read_text())
    assert record["supervision"]["boxes"] == "auxiliary (drawn) + other.json (origin not recorded)"


def test_mistakes_come_before_any_work(shapes_root, photos, drawn, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ["run", f"--root={shapes_root}", f"--out={out}", *RUN]
    missing, foreign = tmp_path / "nowhere.json", tmp_path / "foreign.json"
    foreign.write_text('[{"image_id": "x", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]')
    for options, words in (
        (["--boxes.source=file"], "needs boxes.file"),
        ([f"--boxes.file={drawn}"], "wants boxes.source='file'"),
        (["--boxes.top_k=0"], "top_k=0"),
        (["--network.layers=0"], "layers=0: a graph of patches"),
        (["--train.node_classes=references"], "is for a grid"),
        (["--boxes.source=file", f"--boxes.file={missing}"], "nowhere.json' cannot be read"),
        (["--boxes.source=file", f"--boxes.file={foreign}"], "none is of these photos"),
        (["--patches=grid"], "want --patches boxes"),
        (["--patches=none"], "want --patches boxes"),
    ):
        assert words in error_of(capsys, *command, *options)
        assert not out.exists()
    monkeypatch.setattr(patches, "check_selective_search", _no_opencv)
    error = error_of(capsys, *command, "--boxes.source=detector")
    assert "pgnn-geo[detect]" in error and not out.exists()


def test_without_a_graph_there_is_nothing_to_set_of_it(shapes_root, tmp_path, capsys):
    command = [
        "run",
        f"--root={shapes_root}",
        f"--out={tmp_path / 'out'}",
        "--recipe=trained",
        *TINY,
        *MAPS,
    ]
    for name, value in (("grid", "2"), ("layers", "0"), ("normalize", "sinkhorn")):
        option = f"--network.{name}={value}"
        assert f"--network.{name} is of the patch graph" in error_of(capsys, *command, option)
    error = error_of(capsys, *command, "--train.node_classes=references")
    assert "patches='none' has no nodes" in error and not (tmp_path / "out").exists()


def test_the_patch_graph_is_there_if_it_is_asked_for(shapes_root):
    data = DataConfig("voc", str(shapes_root))
    network = {"backbone": "vgg_tiny", "weights": None, "layers": 2, "normalize": "sinkhorn"}
    for patches_, layers in (("none", 0), ("grid", 2), (BoxConfig(top_k=4), 2)):
        config = RunConfig(data, "trained", network=network, patches=patches_)
        model = config.build_network("pgnn", 5)
        assert len(model.blocks) == model.config["layers"] == layers
        assert all(block.attention.normalize == "sinkhorn" for block in model.blocks)
        assert model.top_k == (4 if config.boxes else None)
        assert config.build_network("cam", 5).config["layers"] == 0
    with pytest.raises(InputError, match="want 'none', 'grid' or a BoxConfig"):
        RunConfig(data, "trained", network=network, patches="boxes")  # not a grid by mistake


def _no_opencv():
    raise InputError("pip install 'pgnn-geo[detect]'")


def test_the_detector_of_a_run_has_its_backbone_and_seed(shapes_root):
    of_backbone = {"backbone": "vgg_tiny", "weights": None, "freeze_stages": 1, "output_stride": 8}
    train = AttentionTrainingConfig(seed=3, workers=0, precision="32-true")
    data = DataConfig("voc", str(shapes_root))
    config = RunConfig(
        data, "trained", network=of_backbone, train=train, patches=BoxConfig("detector")
    )
    found = pipeline.detector_config(config)
    assert found.data == data and found.train.seed == 3 and found.train.workers == 0
    assert found.train.precision == found.boxes.precision == "32-true"
    assert found.network | of_backbone == found.network


def test_boxes_of_a_detector_of_ones_own(shapes_root, photos, tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2.ximgproc")
    real = pipeline.detector_config

    def small(config):
        job = real(config)
        train = replace(job.train, epochs=1, sizes=(64,), max_proposals=50)
        network = job.network | {"hidden_channels": 16, "pool_size": 2, "refinements": 1}
        return replace(job, train=train, network=network, proposals=ProposalConfig(side=64))

    monkeypatch.setattr(pipeline, "detector_config", small)
    run(shapes_root, tmp_path, "--boxes.source=detector")
    printed = capsys.readouterr().out
    assert "boxes from a detector" in printed and "P-GNN IoU" in printed
    found, theirs = (
        PhotoBoxes(BoxFile(folder / "boxes.json", photos), photos)
        for folder in (tmp_path, tmp_path / "detector")
    )
    for own, other in zip(found.boxes, theirs.boxes, strict=True):
        assert torch.equal(own.boxes, other.boxes)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["supervision"] == ["tags: csv (voc train)"]
    (tmp_path / "metrics.json").unlink()  # everything else is there: nothing is trained again

    def nothing(*arguments):
        raise AssertionError

    monkeypatch.setattr(detection, "detect", nothing)
    run(shapes_root, tmp_path, "--boxes.source=detector")
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
