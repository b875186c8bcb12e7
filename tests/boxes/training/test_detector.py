from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from pgnn_geo.boxes.adjuster import BoxAdjuster
from pgnn_geo.boxes.inference import DetectionConfig, DetectorBoxes, detect_boxes
from pgnn_geo.boxes.oicr import image_loss, oicr_centres, oicr_labels, refinement_loss
from pgnn_geo.boxes.training.box_views import BoxViewData, box_view_dataset
from pgnn_geo.boxes.training.detector import DetectorModule, DetectorTrainingConfig, train_detector
from pgnn_geo.boxes.weak_detector import WeakDetector, select_boxes
from pgnn_geo.datasets import Shapes, TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import View, photo_batches
from pgnn_geo.io.ledger import SupervisionLedger

CONFIG = DetectorTrainingConfig(
    epochs=2,
    batch_size=4,
    sizes=(64,),
    max_proposals=20,
    lr=1e-3,
    head_lr=1e-3,
    workers=0,
    precision="32-true",
)


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


@pytest.fixture(scope="module")
def proposals(shapes):
    """Windows of three sizes in steps of 8 pixels; photo 3 has none, photo 5 has one."""
    windows = [
        torch.tensor([[x, y, x + side, y + side]], dtype=torch.float)
        for side in (24, 32, 40)
        for x in range(0, 65 - side, 8)
        for y in range(0, 65 - side, 8)
    ]
    boxes = [torch.cat(windows)] * len(shapes)
    boxes[3], boxes[5] = torch.zeros(0, 4), boxes[5][:1]
    return boxes


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    options = {"refinements": 2, "pool_size": 2, "hidden_channels": 32, **options}
    options = {"freeze_stages": 1, "output_stride": 8, **options}
    return WeakDetector("vgg_tiny", num_classes=5, weights=None, **options)


class Recorder(Callback):
    def __init__(self):
        self.rates, self.losses = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer, module):
        self.losses.append({k: float(v) for k, v in trainer.callback_metrics.items()})


class Killed(Exception):
    pass


class Dies(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise Killed


def test_it_learns_the_tags(shapes, proposals, tmp_path):
    recorder = Recorder()
    network = tiny(hidden_channels=64, dropout=0.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config = replace(CONFIG, epochs=12, flip=False)
    train_detector(network, shapes, proposals, tmp_path, config, callbacks=[recorder])
    assert not network.training
    first, last = recorder.losses[0], recorder.losses[-1]
    assert last["loss_image"] < 0.7 * first["loss_image"]
    assert {"loss_image", "loss_refine_1", "loss_refine_2"} <= last.keys()
    steps = 12 * 5
    factor = [(1 - step / steps) ** 0.9 for step in range(steps)]
    assert [rate[0] for rate in recorder.rates] == pytest.approx([1e-3 * f for f in factor])
    moved = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert not any(name.startswith("backbone.stages.0") for name in moved)
    assert {"backbone.stages.1.1.weight", "hidden.0.weight", "lin_refine.1.weight"} <= moved


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    shapes, proposals, tmp_path, capsys, workers
):
    config = replace(CONFIG, epochs=3, workers=workers, sizes=(48, 64))
    stems = tmp_path / "stems"
    whole = train_detector(tiny(), shapes, proposals, tmp_path / "whole", config, stem_folder=stems)
    with pytest.raises(Killed):
        train_detector(
            tiny(),
            shapes,
            proposals,
            tmp_path / "cut",
            config,
            callbacks=[Dies(epoch=1)],
            stem_folder=stems,
        )
    capsys.readouterr()
    other = tiny(seed=5)
    other.backbone.stages[0].load_state_dict(tiny().backbone.stages[0].state_dict())  # frozen
    resumed = train_detector(other, shapes, proposals, tmp_path / "cut", config, stem_folder=stems)
    printed = capsys.readouterr().out
    assert "epoch 2/3" in printed and "epoch 1/3" not in printed
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    checkpoint = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 * 5


@pytest.fixture
def views(shapes, proposals, tmp_path):
    network = tiny(freeze_stages=0)
    return box_view_dataset(
        network.backbone, shapes, proposals, tmp_path, (32, 64), max_boxes=20, precision="32-true"
    )


def epoch_of(data, epoch, rank=0, world=1):
    data.trainer = type("T", (), {"current_epoch": epoch, "global_rank": rank, "world_size": world})
    torch.manual_seed(epoch)
    return list(data.train_dataloader())


def test_boxes_lie_in_the_view_where_they_lie_in_the_photo(views, shapes):
    """With no frozen stage, a stem is the normalised photo: a box shows the same in both."""
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        index = (0, 7)[seed % 2]
        item = views[index, 32]
        assert item["stem"].shape[-2:] == (32, 32) and item["side"] == 32
        assert len(item["boxes"]) == 20 and torch.equal(item["tags"], shapes.tags[index])
        plain = views.banks[View(32)][index]
        mirrored = not torch.allclose(item["stem"], plain, atol=1e-2)
        seen.add(mirrored)
        boxes = item["boxes"].round()
        if mirrored:
            boxes = torch.stack([32 - boxes[:, 2], boxes[:, 1], 32 - boxes[:, 0], boxes[:, 3]], 1)
        whole = {tuple(box) for box in (views.boxes[index] / 2).tolist()}
        assert {tuple(box) for box in boxes.tolist()} <= whole
    assert seen == {True, False}


@pytest.fixture
def wide(tmp_path):
    """One photo of 96 x 48 pixels, black but for a white box at x 48..72, y 12..24."""
    image = torch.zeros(3, 48, 96, dtype=torch.uint8)
    image[:, 12:24, 48:72] = 255
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "wide.png")
    tags = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    return TaggedDataset(["wide"], [tmp_path / "wide.png"], list("abcde"), tags)


def test_a_box_shows_the_same_in_a_photo_that_is_no_square(wide, tmp_path):
    box = [torch.tensor([[48.0, 12.0, 72.0, 24.0]])]
    backbone = tiny(freeze_stages=0).backbone
    views = box_view_dataset(backbone, wide, box, tmp_path / "stems", (32,), precision="32-true")
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        item = views[0, 32]
        lit = (item["stem"].mean(0) > 0.3).nonzero()
        (y1, x1), (y2, x2) = lit.amin(0).tolist(), (lit.amax(0) + 1).tolist()
        assert item["boxes"].tolist() == [[x1, y1, x2, y2]]
        seen.add((x1, y1, x2, y2))
    assert seen == {(16, 8, 24, 16), (8, 8, 16, 16)}


def test_detections_in_a_photo_that_is_no_square(wide):
    network = tiny(freeze_stages=0).eval()
    proposals = torch.tensor([[48.0, 12.0, 72.0, 24.0], [0.0, 0.0, 96.0, 48.0], [0.0, 6, 30, 48]])
    config = DetectionConfig((64,), flip=False, nms=1.0, min_score=0.0, precision="32-true")
    ((_, found),) = detect_boxes(network, wide, [proposals], config)
    (image,) = photo_batches(wide, View(64), workers=0)
    squashed = proposals * torch.tensor([64 / 96, 64 / 48, 64 / 96, 64 / 48])
    (expected,) = network.detect(image, [squashed], wide.tags, nms=1.0, min_score=0.0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    back = expected.boxes / torch.tensor([64 / 96, 64 / 48, 64 / 96, 64 / 48])
    torch.testing.assert_close(found.boxes, back, atol=1e-3, rtol=0)


def test_what_is_drawn_depends_on_seed_and_epoch_alone(views):
    def draw(epoch, **options):
        data = BoxViewData(views, **{"batch_size": 4, "seed": 0, "workers": 0, **options})
        return [(b["stem"].sum().item(), b["boxes"][0].tolist()) for b in epoch_of(data, epoch)]

    first = draw(0)
    assert draw(0) == first == draw(0, workers=1)
    assert draw(1) != first and draw(0, seed=1) != first
    data = BoxViewData(views, 4, 0, 0)
    batches = epoch_of(data, 0)
    assert {batch["side"] for batch in batches} == {32, 64}
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(20))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_a_batch_is_shared_as_it_is_drawn(views, world):
    def seen(batch):
        return list(
            zip(batch["index"].tolist(), batch["stem"].sum(dim=(1, 2, 3)).tolist(), strict=True)
        )

    data = BoxViewData(views, 8, 0, 0)  # the last batch has four photos
    shares = [epoch_of(data, 0, rank, world) for rank in range(world)]
    for whole, *parts in zip(epoch_of(data, 0), *shares, strict=True):
        assert {part["side"] for part in parts} == {whole["side"]}
        # Who has no photo sees one without boxes.
        own = [part for part in parts if len(part["boxes"][0]) or 3 in part["index"]]
        assert sorted(seen(whole)) == sorted(item for part in own for item in seen(part))
        assert len(own) == min(world, len(whole["index"]))


def test_losses_of_shares_add_up_to_that_of_the_batch():
    torch.manual_seed(0)
    scores, tags = torch.rand(5, 3), (torch.rand(5, 3) > 0.5).float()
    logits, labels, weights = torch.randn(9, 4), torch.randint(4, (9,)), torch.rand(9)
    whole = image_loss(scores, tags), refinement_loss(logits, labels, weights)
    found = [
        (
            image_loss(*(x[5 * r // 3 : 5 * (r + 1) // 3] for x in (scores, tags)), average=five),
            refinement_loss(*(x[4 * r : 4 * r + 4] for x in (logits, labels, weights)), nine),
        )
        for r in range(3)
        for five, nine in [(lambda _: torch.tensor(5 / 3), lambda _: torch.tensor(9 / 3))]
    ]
    for one, parts in zip(whole, zip(*found, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(), one)  # as gradients are averaged


def test_pseudo_labels_follow_the_adjusted_boxes(proposals, shapes):
    network = tiny(freeze_stages=0)
    adjuster = BoxAdjuster("vgg_tiny", "max", 2, 8, None, 8, freeze_stages=0)
    boxes = [proposals[0][:20], proposals[0][20:30], torch.zeros(0, 4)]
    batch = {
        "stem": torch.rand(3, 3, 64, 64),
        "boxes": boxes,
        "tags": shapes.tags[:3],
        "side": 64,
    }
    scores = torch.rand(30, 5)
    plain = DetectorModule(network, CONFIG).pseudo_labels(batch, scores)
    module = DetectorModule(network, CONFIG, adjuster)
    for same, other in zip(plain, module.pseudo_labels(batch, scores), strict=True):
        assert torch.equal(same, other)  # a new adjuster moves nothing
    adjuster.lin_offset.bias.data = torch.tensor([0.5, 0.0, 0.0, 0.0])
    moved = module.pseudo_labels(batch, scores)
    assert not torch.equal(moved.labels, plain.labels)
    centres = oicr_centres(boxes[1], scores[20:], shapes.tags[1])
    features = adjuster.backbone.trunk(batch["stem"][1:2])
    (shifted,) = adjuster.adjust(features, [centres], (64, 64))
    assert torch.equal(moved.labels[20:], oicr_labels(boxes[1], shifted).labels)


def test_photos_without_proposals_teach_nothing(shapes, tmp_path):
    module = DetectorModule(tiny(freeze_stages=0), CONFIG)
    module.log = lambda *args, **kwargs: None
    batch = {
        "stem": torch.rand(2, 3, 64, 64),
        "boxes": [torch.zeros(0, 4)] * 2,
        "tags": shapes.tags[:2],
        "side": 64,
    }
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.fixture(scope="module")
def trained(shapes, proposals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    network = train_detector(tiny(), shapes, proposals, folder, replace(CONFIG, epochs=1))
    return network, folder / "stems"


DETECT = DetectionConfig(flip=False, precision="32-true", min_score=0.0)


def test_boxes_of_a_data_set_are_those_of_its_photos(trained, shapes, proposals):
    network, stems = trained
    found = dict(detect_boxes(network, shapes, proposals, DETECT, stem_folder=stems))
    assert list(found) == shapes.image_ids and len(found[shapes.image_ids[3]]) == 0
    for index in (0, 5, 19):
        image = shapes[index]["image"].as_subclass(torch.Tensor)[None] / 255
        tags = shapes.tags[index : index + 1]
        expected = network.detect(image, [proposals[index]], tags, min_score=0.0)[0]
        own = found[shapes.image_ids[index]]
        torch.testing.assert_close(own.scores, expected.scores, atol=2e-3, rtol=0)  # stems are half
        assert set(own.classes.tolist()) == set((tags[0].nonzero()[:, 0] + 1).tolist())
        assert len(own) > 0
    fresh = dict(detect_boxes(network, shapes, proposals, replace(DETECT, max_proposals=5)))
    assert all(len(boxes) <= 10 for boxes in fresh.values())
    free = dict(detect_boxes(network, shapes, proposals, DETECT, use_tags=False))
    assert set(free[shapes.image_ids[0]].classes.tolist()) == {1, 2, 3, 4, 5}
    still = replace(DETECT, vote=False)  # stems are half, and scores move boxes that vote
    kept = dict(detect_boxes(network, shapes, proposals, still, stem_folder=stems))
    source = DetectorBoxes(network, shapes, proposals, SupervisionLedger(), config=still)
    voted = DetectorBoxes(
        network, shapes, proposals, SupervisionLedger(), config=DETECT, stem_folder=stems
    )
    for name in shapes.image_ids[4:6]:
        torch.testing.assert_close(source(name).boxes, kept[name].boxes)
        torch.testing.assert_close(voted(name).boxes, found[name].boxes)
    assert any(not torch.equal(found[name].boxes, kept[name].boxes) for name in found)
    with pytest.raises(InputError, match="no image 'cat'"):
        source("cat")
    assert network.config["sizes"] == [64]
    with pytest.raises(InputError, match="was not trained"):
        next(detect_boxes(tiny(), shapes, proposals, DETECT))


def test_views_are_averaged(trained, shapes, proposals):
    network, _ = trained
    photos = shapes.subset([0])
    config = replace(DETECT, sizes=(48, 64), flip=True, nms=1.0, max_boxes=10_000)
    ((_, found),) = detect_boxes(network, photos, proposals[:1], config)
    scores = []
    for size in (48, 64):
        for flip in (False, True):
            one = View(size, flip)
            boxes = proposals[0] * size / 64
            if flip:
                boxes = torch.stack(
                    [size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1
                )
            (image,) = photo_batches(photos, one, workers=0)
            with torch.no_grad():
                scores.append(network(image, [boxes]).scores)
    mean = torch.stack(scores).mean(0)
    expected = select_boxes(proposals[0], mean, shapes.tags[0], 1.0, 0.0, 10_000)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    assert len(found) == len(expected)


def test_an_adjuster_moves_detections(trained, shapes, proposals):
    network, _ = trained
    adjuster = BoxAdjuster("vgg_tiny", "max", 2, 8, None, 8, freeze_stages=1).eval()
    with pytest.raises(InputError, match="frozen stages differ"):
        next(detect_boxes(network, shapes, proposals, DETECT, adjuster=adjuster))
    adjuster.backbone.load_state_dict(network.backbone.state_dict())
    config = replace(DETECT, nms=1.0)
    plain = dict(detect_boxes(network, shapes, proposals, config))
    same = dict(detect_boxes(network, shapes, proposals, config, adjuster=adjuster))
    name = shapes.image_ids[0]
    torch.testing.assert_close(same[name].boxes, plain[name].boxes)
    adjuster.lin_offset.bias.data = torch.tensor([0.0, 0.25, 0.0, 0.0])
    moved = dict(detect_boxes(network, shapes, proposals, config, adjuster=adjuster))[name]
    height = plain[name].boxes[:, 3] - plain[name].boxes[:, 1]
    expected = (plain[name].boxes[:, 1] + height / 4).clamp(max=63)
    torch.testing.assert_close(moved.boxes[:, 1], expected)
    assert len(moved) == len(plain[name])


def test_what_cannot_be_trained(shapes, proposals, tmp_path):
    untagged = shapes.subset(range(len(shapes)))
    untagged.tags = None
    with pytest.raises(InputError, match="tags"):
        train_detector(tiny(), untagged, proposals, tmp_path, CONFIG)
    with pytest.raises(InputError, match="each of 20 photos, got 3"):
        train_detector(tiny(), shapes, proposals[:3], tmp_path, CONFIG)
    with pytest.raises(InputError, match="No photo has a proposal"):
        train_detector(tiny(), shapes, [torch.zeros(0, 4)] * 20, tmp_path, CONFIG)
    four = WeakDetector("vgg_tiny", num_classes=4, weights=None, freeze_stages=0)
    with pytest.raises(InputError, match="4 classes, the data set 5"):
        train_detector(four, shapes, proposals, tmp_path, CONFIG)
    for wrong in ({"epochs": 0}, {"sizes": ()}, {"max_proposals": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(CONFIG, **wrong)
