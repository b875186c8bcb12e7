"""Commands in two processes write what one writes; what goes wrong in one is said once."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from scripts import BENCHMARKS

from pgnn_geo.app.cli import main
from pgnn_geo.app.launch import check_alone
from pgnn_geo.boxes.box_file import BoxFile
from pgnn_geo.datasets.shapes import SHAPES_CLASSES, Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn import PGNN, DeepLabV2
from pgnn_geo.ranks import BLOCKS, OtherRankError, Ranks, blocks
from pgnn_geo.training.attention import AttentionTrainingConfig
from pgnn_geo.training.stems import group_loader

RUN = [
    *("--network.backbone=vgg_tiny", "--features.size=64", "--segment=off", "--baseline=true"),
    *("--evidence.iterations=10", "--evidence.positions=512", "--labels.refine=par"),
    *("--evidence.whitening=0.1", "--evidence.evidence_window=3"),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
KEPT = (".png", ".safetensors", ".npy", ".csv")
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def two(*command: str) -> subprocess.CompletedProcess[str]:
    port = f"--master_port={20000 + os.getpid() % 20000}"
    program = [*TORCHRUN, port, "-m", "pgnn_geo.app.cli", *command]
    return subprocess.run(program, capture_output=True, text=True, timeout=200, env=ENV)


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Processes that are forked from one that has imported everything, and may be killed."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("_kills")


@pytest.fixture
def in_two(kills: ModuleType) -> Callable[..., None]:
    """Runs a command in two such processes."""

    def run(log: Path, *command: str) -> None:
        codes = kills.finish(kills.start(command, log, ranks=2))
        assert codes == [0, 0], log.read_text()

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    """As in the others: sums of several threads have another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def files(folder: Path, kept: tuple[str, ...] = KEPT) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix in kept)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_two_processes_write_what_one_does(shapes_root: Path, tmp_path: Path) -> None:
    with one_thread():
        main(["run", f"--root={shapes_root}", f"--out={tmp_path / 'one'}", *RUN])
    done = two("run", f"--root={shapes_root}", f"--out={tmp_path / 'two'}", *RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pseudo-labels, train, 20 images") == 1
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    labels = [name for name in one if name.endswith(".png") and "/labels/" in name]
    assert len(labels) == 40 and "pgnn/model/model.safetensors" in one
    metrics = [(tmp_path / name / "metrics.json").read_text() for name in ("one", "two")]
    assert metrics[0] == metrics[1]
    assert not (tmp_path / "two" / "features").exists()


def test_recipe_many_and_its_labels_in_two_processes(
    shapes_root: Path, tmp_path: Path, in_two: Callable[..., None]
) -> None:
    one, two, root = tmp_path / "one", tmp_path / "two", f"--root={shapes_root}"
    tiny = [*RUN[:3], "--evidence.iterations=5", "--evidence.positions=512"]
    run = ["run", root, "--recipe=many", *tiny]
    model = f"--checkpoint={one / 'run' / 'pgnn' / 'model'}"
    label = ["label", root, model, "--labels.background=0.4", "--export=coco"]
    with one_thread():
        main([*run, f"--out={one / 'run'}"])
        main([*label, f"--out={one / 'labels'}"])
    in_two(tmp_path / "run.log", *run, f"--out={two / 'run'}")
    in_two(tmp_path / "label.log", *label, f"--out={two / 'labels'}")
    kept = (*KEPT, ".json")
    for name in ("run/pgnn", "labels"):
        assert files(one / name, kept) == files(two / name, kept)
    assert len(list((two / "labels").glob("*.png"))) == 20
    assert not (two / "labels" / ".features").exists()
    assert '"objectness": true' in (two / "run" / "pgnn" / "model" / "config.json").read_text()


TRAINED = [
    *("--recipe=paper", "--network.backbone=vgg_tiny", "--network.heads=2", "--labels.refine=none"),
    *("--network.grid=2", "--network.freeze_stages=1", "--segment=off", "--maps.propagate=both"),
    *("--train.size=32", "--train.epochs=2", "--train.completion_epochs=1", "--train.workers=0"),
    *("--train.precision=32-true", "--train.completion.size=32", "--maps.size=32"),
]


def test_a_trained_network_in_two_processes(
    shapes_root: Path, tmp_path: Path, in_two: Callable[..., None]
) -> None:
    """Loss with the previous epoch's maps, completion and labels; batches are the same photos."""
    run = ["run", f"--root={shapes_root}", *TRAINED]
    with one_thread():
        main([*run, f"--out={tmp_path / 'one'}"])
    in_two(tmp_path / "log", *run, f"--out={tmp_path / 'two'}")
    log = (tmp_path / "log").read_text()
    assert log.count("epoch 3/3") == 1  # which one of them says
    one, two = (
        load_attention_model(tmp_path / name / "pgnn" / "model")[0].state_dict()
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        # A bias of all keys changes no attention: its gradient is rounding, which Adam scales up.
        if not name.endswith("lin_key.bias"):
            torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-4, msg=name)
    labels = [files(tmp_path / name / "pgnn" / "labels") for name in ("one", "two")]
    assert labels[0] == labels[1] and len(labels[0]) == 22
    assert not list((tmp_path / "two").rglob(".unfinished*"))
    assert not (tmp_path / "two" / "pgnn" / "previous").exists()


def close(one: Path, two: Path, limit: float) -> None:
    """Networks whose weights are equal but for the order of sums."""
    states = [load_file(folder / "model.safetensors") for folder in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=limit, rtol=limit, msg=name)


BOXES = [
    *("--recipe=trained", "--patches=boxes", "--boxes.size=3", "--boxes.top_k=2"),
    *("--network.backbone=vgg_tiny", "--network.heads=2", "--network.freeze_stages=1"),
    *("--train.size=64", "--train.epochs=1", "--train.completion_epochs=1", "--train.workers=0"),
    *("--train.precision=32-true", "--train.completion.size=64", "--maps.size=64"),
    *("--maps.partners=1", "--labels.refine=none", "--segment=off"),
]


def test_boxes_of_maps_in_two_processes(
    shapes_root: Path, tmp_path: Path, in_two: Callable[..., None]
) -> None:
    """Each cuts boxes out of the maps of its photos, and has its groups of every batch."""
    run = ["run", f"--root={shapes_root}", *BOXES]
    with one_thread():
        main([*run, f"--out={tmp_path / 'one'}"])
    in_two(tmp_path / "log", *run, f"--out={tmp_path / 'two'}")
    one, two = tmp_path / "one", tmp_path / "two"
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    boxes = [BoxFile(out / "boxes.json", photos) for out in (one, two)]
    found = [[file(name) for file in boxes] for name in photos.image_ids]
    assert sum(len(first) for first, _ in found) > 50
    for first, second in found:
        assert torch.equal(first.classes, second.classes)
        torch.testing.assert_close(first.boxes, second.boxes, atol=1e-3, rtol=0)
    close(one / "pgnn" / "model", two / "pgnn" / "model", 1e-4)
    labels = [files(out / "pgnn" / "labels", (".png",)) for out in (one, two)]
    assert labels[0] == labels[1] and len(labels[0]) == 20


DETECTOR = [
    *("--network.backbone=vgg_tiny", "--network.pool_size=2", "--network.hidden_channels=16"),
    *("--network.freeze_stages=1", "--train.workers=0", "--train.sizes=[64]"),
    *("--train.precision=32-true", "--train.epochs=2"),
]


@pytest.mark.slow
def test_a_detector_and_its_adjuster_in_two_processes(
    shapes_root: Path, tmp_path: Path, in_two: Callable[..., None]
) -> None:
    """Batches of 19 photos: of the last one, of one photo, the first process has none."""
    pytest.importorskip("cv2.ximgproc")
    ids = [f"val_{i:05d}" for i in range(10)]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64} for i in ids]
    rows = [{"id": n, "image_id": i, "bbox": [9, 5, 20 + n, 30]} for n, i in enumerate(ids)]
    drawn = tmp_path / "drawn.json"
    drawn.write_text(json.dumps({"images": images, "annotations": rows}))
    adjuster = ["adjuster", f"--annotations={drawn}", f"--images={shapes_root / 'JPEGImages'}"]
    detect = ["detect", f"--root={shapes_root}", "--eval_split=val", "--network.refinements=1"]
    detect += [f"--adjuster={tmp_path / 'one' / 'adjuster' / 'model'}", "--network.dropout=0"]
    detect += ["--train.batch_size=19", "--train.max_proposals=50", "--proposals.side=64"]
    one, two = tmp_path / "one", tmp_path / "two"
    for name, command in (("adjuster", adjuster), ("detector", detect)):
        command += DETECTOR
        with one_thread():
            main([*command, f"--out={one / name}"])
        in_two(tmp_path / "log", *command, f"--out={two / name}")
        close(one / name / "model", two / name / "model", 1e-4)
        assert not (two / name / "stems").exists()
    proposed = [files(out / "detector" / "proposals", (".npz",)) for out in (one, two)]
    assert proposed[0] == proposed[1] and len(proposed[0]) == 30
    metrics = [json.loads((out / "detector" / "metrics.json").read_text()) for out in (one, two)]
    assert metrics[0]["supervision"] == metrics[1]["supervision"]
    for name in ("boxes", "eval"):
        found = [each[name]["map"] for each in metrics]
        assert found[1] == pytest.approx(found[0], abs=1e-3)
        assert metrics[0][name]["proposal_recall"] == metrics[1][name]["proposal_recall"]


@pytest.mark.slow
def test_a_process_of_a_training_is_killed(
    shapes_root: Path, tmp_path: Path, kills: ModuleType, in_two: Callable[..., None]
) -> None:
    """The other one ends by itself, and the same command goes on to the same bytes."""
    out, log = tmp_path / "run", tmp_path / "log"
    run = ["run", f"--root={shapes_root}", *TRAINED, f"--out={out}"]
    kept = (".png", ".npy", ".safetensors")
    in_two(log, *run)
    whole = files(out / "pgnn", kept)
    shutil.rmtree(out)
    stage = kills.Stage("training", "pgnn/checkpoints/last.ckpt", "pgnn/model")
    killed = kills.killed(kills.start(run, log, ranks=2), out, stage, delay=0.0, victim=1)
    assert killed is not None and killed.processes == [2, -signal.SIGKILL]
    assert " ".join(log.read_text().split()).count("another process of this job has ended") == 1
    in_two(log, *run)
    assert files(out / "pgnn", kept) == whole and len(whole) == 22


SEGMENT = [
    *("--recipe=light", "--network.backbone=vgg_tiny", "--network.weights=null"),
    *("--network.hidden_channels=32", "--train.head=largefov", "--train.size=64"),
    *("--train.crop=64", "--train.epochs=1", "--train.batch_size=5", "--train.workers=0"),
    *("--train.precision=32-true", "--mutual=tags"),
]


@pytest.mark.slow
def test_a_segmenter_in_two_processes(
    shapes_root: Path, tmp_path: Path, in_two: Callable[..., None]
) -> None:
    """The same as on two devices of a training's own."""
    labels = tmp_path / "labels"
    shutil.copytree(shapes_root / "SegmentationClass", labels)
    command = ["segment", f"--root={shapes_root}", f"--labels={labels}", *SEGMENT]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pgnn_geo.app.cli", *command, "--train.devices=2"),
            f"--out={tmp_path / 'one'}",
        ],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    in_two(tmp_path / "log", *command, f"--out={tmp_path / 'two'}")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    metrics = [
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    ]
    assert metrics[0]["images"] == 10 and metrics[0] == metrics[1]


def test_groups_that_cannot_be_shared(shapes_root: Path, tmp_path: Path) -> None:
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    network = PGNN("vgg_tiny", 5, weights=None, output_stride=8, layers=0)
    with pytest.raises(InputError, match="groups_per_batch=4 are shared by 3 processes"):
        config = AttentionTrainingConfig(groups_per_batch=4)
        group_loader(network.backbone, photos, tmp_path, config, ranks=Ranks(0, 3))
    assert not any(tmp_path.iterdir())


def test_groups_are_shared_as_they_are_drawn(shapes_root: Path, tmp_path: Path) -> None:
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)

    config = AttentionTrainingConfig(augment="crop", size=32, workers=0)

    def drawn(ranks: Ranks) -> list[list[tuple[int, float]]]:
        loader = group_loader(None, photos, tmp_path, config, epoch=1, ranks=ranks)
        return [
            [*zip(batch["index"].tolist(), batch["image"].sum(dim=(1, 2, 3)).tolist(), strict=True)]
            for batch in loader
        ]

    shares = [drawn(Ranks(rank, 2)) for rank in range(2)]
    for whole, *parts in zip(drawn(Ranks()), *shares, strict=True):
        assert len(parts[0]) == len(parts[1]) == 6
        assert sorted(whole) == sorted(item for part in parts for item in part)


def test_predictions_in_two_processes(
    shapes_root: Path, tmp_path: Path, in_two: Callable[..., None]
) -> None:
    torch.manual_seed(0)
    net = DeepLabV2("vgg_tiny", 5, weights=None, hidden_channels=32)
    ledger = SupervisionLedger(tags="drawn")
    Segmenter(net, SHAPES_CLASSES, ledger, side=64).save_pretrained(tmp_path / "segmenter")
    photos = tmp_path / "photos"
    shutil.copytree(shapes_root / "JPEGImages", photos)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    command = ["predict", f"--photos={photos}", f"--checkpoint={tmp_path / 'segmenter'}"]
    command += ["--probabilities=true", "--overlays=true", "--export=yolo", "--refine=par"]
    with one_thread(), pytest.raises(SystemExit) as ended:
        main([*command, f"--out={tmp_path / 'one'}"])
    assert ended.value.code == 1  # one of the photos cannot be read
    with pytest.raises(AssertionError, match=r"30\s+photos,\s+30\s+new"):
        in_two(tmp_path / "log", *command, f"--out={tmp_path / 'two'}")
    assert (tmp_path / "log").read_text().count("broken.jpg") == 1
    kept = (*KEPT, ".json", ".npz", ".txt")
    assert files(tmp_path / "one", kept) == files(tmp_path / "two", kept)
    assert len(list((tmp_path / "two" / "masks").glob("*.png"))) == 30


def test_what_all_would_say_is_said_once(tmp_path: Path) -> None:
    done = two("run", f"--root={tmp_path / 'none'}", f"--out={tmp_path / 'run'}", *RUN)
    assert done.returncode != 0
    assert done.stderr.count("pgnn-geo: error:") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("count, unit", [(1, 1), (20, 4), (64, 1), (1000, 4), (10582, 4)])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_photos_once(count: int, unit: int, size: int) -> None:
    cut = blocks(count, unit)
    assert len(cut) <= BLOCKS and all(block.start % unit == 0 for block in cut)
    shares = [Ranks(rank, size).share(cut) for rank in range(size)]
    assert [i for share in shares for block in share for i in block] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_command_for_one_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_alone("run")
    with pytest.raises(InputError, match="'export' is for one process"):
        check_alone("export")


def test_a_folder_that_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ranks().check_shared(tmp_path / "none")  # of one process, which sees what it has written
    for rank, kind in ((0, InputError), (1, OtherRankError)):
        monkeypatch.setattr(Ranks, "gather", lambda self, there: [True, there])
        Ranks(rank, 2).check_shared(tmp_path)
        with pytest.raises(
            InputError, match=r"\[1\] of 2 do not see .*/none: .*shared disk"
        ) as error:
            Ranks(rank, 2).check_shared(tmp_path / "none")
        assert error.type is kind


def test_places_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that none of them is left in the end
        monkeypatch.delenv(name)
    step = {"NTASKS": 4, "PROCID": 3, "LOCALID": 1, "NODELIST": "n[1-2]", "JOB_ID": 7}
    for name, value in {**step, "NTASKS_PER_NODE": 2, "JOB_NAME": "work", "NODEID": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(InputError, match="'export' is for one process"):
        check_alone("export")
    got = [os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")]
    assert got == ["4", "3", "1", "n1"]
