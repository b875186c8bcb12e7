from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torchvision.ops import box_iou

from pgnn_geo.boxes.adjuster import BoxAdjuster, decode_boxes, jitter_boxes
from pgnn_geo.boxes.evaluation import true_boxes
from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.boxes.training.adjuster import (
    AdjusterModule,
    AdjusterTrainingConfig,
    draw_boxes_around,
    train_adjuster,
)
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError

CONFIG = AdjusterTrainingConfig(
    epochs=2,
    batch_size=5,
    sizes=(64,),
    draws=8,
    lr=1e-3,
    head_lr=1e-3,
    workers=0,
    precision="32-true",
)


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)


@pytest.fixture(scope="module")
def boxes(shapes):
    return [found.boxes for found in true_boxes(shapes, min_pixels=30).values()]


def tiny(seed=0):
    torch.manual_seed(seed)
    return BoxAdjuster("vgg_tiny", "max", 4, 64, None, 8, freeze_stages=0)


class Killed(Exception):
    pass


class Dies(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise Killed


def test_it_learns_to_move_boxes_onto_objects(shapes, boxes, tmp_path):
    config = replace(CONFIG, epochs=25, flip=False)
    adjuster = train_adjuster(tiny(), shapes, boxes, tmp_path, config)
    assert not adjuster.training
    torch.manual_seed(1)
    before, after = [], []
    for index in range(20):
        image = shapes[index]["image"].as_subclass(torch.Tensor)[None] / 255
        drawn, targets = jitter_boxes(boxes[index], 10)
        own = ImageBoxes(drawn, torch.ones(len(drawn), dtype=torch.long), torch.ones(len(drawn)))
        with torch.no_grad():
            (moved,) = adjuster.adjust(adjuster.backbone(image), [own], (64, 64))
        before.append(box_iou(drawn, targets).diagonal())
        after.append(box_iou(moved.boxes, targets).diagonal())
    # Seen photos, but boxes never drawn before.
    assert torch.cat(after).mean() > torch.cat(before).mean() + 0.1


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(shapes, boxes, tmp_path):
    whole = train_adjuster(tiny(), shapes, boxes, tmp_path / "whole", CONFIG)
    with pytest.raises(Killed):
        train_adjuster(tiny(), shapes, boxes, tmp_path / "cut", CONFIG, callbacks=[Dies()])
    resumed = train_adjuster(tiny(seed=3), shapes, boxes, tmp_path / "cut", CONFIG)
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_new_adjuster_pays_for_the_offsets(shapes, boxes):
    """It answers zero, so that its loss is that of the offsets themselves."""
    module = AdjusterModule(tiny(), CONFIG)
    module.log = lambda *args, **kwargs: None
    losses = []
    for least in (0.95, 0.3):
        drawn = draw_boxes_around(boxes[0], 64, 8, least)
        assert len(drawn["boxes"]) == 8 * len(boxes[0]) and drawn["boxes"].min() >= 0
        torch.testing.assert_close(
            decode_boxes(drawn["boxes"], drawn["offsets"]), boxes[0].repeat_interleave(8, dim=0)
        )
        batch = {"stem": torch.rand(1, 3, 64, 64), **{k: [v] for k, v in drawn.items()}}
        losses.append(module.training_step(batch, 0).item())
        wanted = F.smooth_l1_loss(torch.zeros_like(drawn["offsets"]), drawn["offsets"], beta=1 / 9)
        assert losses[-1] == pytest.approx(wanted.item())
    assert 0 < losses[0] < losses[1]


def test_what_cannot_be_trained(shapes, boxes, tmp_path):
    empty = [*boxes[:3], torch.zeros(0, 4), *boxes[4:]]
    with pytest.raises(InputError, match="1 photos have no box to learn from, such as train_00003"):
        train_adjuster(tiny(), shapes, empty, tmp_path, CONFIG)
    for wrong in ({"epochs": 0}, {"sizes": ()}, {"draws": 0}, {"min_iou": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(CONFIG, **wrong)
