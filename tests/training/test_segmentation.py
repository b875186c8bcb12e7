import math
import shutil
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch.testing import assert_close

from pgnn_geo.datasets import Shapes, TrainTransform
from pgnn_geo.errors import InputError
from pgnn_geo.features import FeatureBank
from pgnn_geo.io.masks import save_mask
from pgnn_geo.nn import DeepLabV2
from pgnn_geo.training.segmentation import (
    SegmentationData,
    SegmentationModule,
    segmentation_loss,
    train_segmentation,
)
from pgnn_geo.training.segmentation_config import RECIPES, SegmentationTrainingConfig

CONFIG = SegmentationTrainingConfig(
    epochs=2,
    steps=None,
    batch_size=8,
    size=64,
    crop=64,
    scale=(0.9, 1.1),
    optimizer="adamw",
    lr=1e-3,
    head_factor=1.0,
    workers=0,
    precision="32-true",
)


class Recorder(Callback):
    def __init__(self):
        self.losses, self.rates, self.masks = {}, [], {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.masks.setdefault(trainer.current_epoch, []).append(batch["mask"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.setdefault(trainer.current_epoch, []).append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    options = {"hidden_channels": 32, "head": "largefov", "dilations": (2,), **options}
    return DeepLabV2("vgg_tiny", 5, weights=None, **options)


def test_it_learns_what_the_labels_say(shapes, tmp_path):
    """Bright cells are class 1 and dark ones class 2, whatever the true masks are."""
    paths = [tmp_path / f"{image_id}.png" for image_id in shapes.image_ids]
    for path, item in zip(paths, shapes, strict=True):
        cells = torch.nn.functional.avg_pool2d(item["image"].as_subclass(torch.Tensor).float(), 8)
        bright = cells.mean(0) > 128
        save_mask(path, (2 - bright.long()).repeat_interleave(8, 0).repeat_interleave(8, 1))
    labelled = shapes.with_masks(paths)
    recorder = Recorder()
    config = replace(CONFIG, epochs=12, batch_size=4, lr=3e-3)
    network = tiny(hidden_channels=128)
    train_segmentation(network, labelled, tmp_path, config, [recorder])
    first, last = (sum(recorder.losses[epoch]) for epoch in (0, 11))
    assert last < 0.6 * first
    assert not network.training
    right = 0.0
    for item in labelled:
        photo = item["image"].as_subclass(torch.Tensor)[None] / 255
        right += (network.predict(photo)[0].argmax(0) == item["mask"]).float().mean().item() / 20
    assert right > 0.75


def reference_loss(logits, labels):
    """Mean of -log softmax at the label in the middle of each cell of the grid."""
    total, count = 0.0, 0
    batch, _, h, w = logits.shape
    height, width = labels.shape[1:]
    for b in range(batch):
        for y in range(h):
            for x in range(w):
                at = math.floor((y + 0.5) * height / h), math.floor((x + 0.5) * width / w)
                label = int(labels[b][at])
                if label != 255:
                    values = logits[b, :, y, x].double()
                    total += float(values.exp().sum().log() - values[label])
                    count += 1
    return total / count


@pytest.mark.parametrize(("h", "w", "height", "width"), [(5, 7, 40, 56), (6, 5, 41, 33)])
def test_loss_is_the_mean_over_labelled_positions(h, w, height, width):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, h, w)
    labels = torch.tensor([0, 1, 2, 3, 255])[torch.randint(5, (2, height, width))].byte()
    assert segmentation_loss(logits, labels).item() == pytest.approx(
        reference_loss(logits, labels), rel=1e-5
    )


def test_a_batch_without_labels_changes_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 8, 8), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_several_scales_and_their_maximum():
    config = replace(CONFIG, loss_scales=(1.0, 0.75, 0.5))
    module = SegmentationModule(tiny().eval(), config)
    images = torch.rand(2, 3, 64, 64)
    *scales, fused = module({"image": images})
    assert [z.shape[-1] for z in scales] == [8, 6, 4] and fused.shape == scales[0].shape
    assert torch.equal(scales[0], module.network(images))
    same = [torch.nn.functional.interpolate(z, (8, 8), mode="bilinear") for z in scales]
    assert torch.allclose(fused, torch.stack(same).amax(0), atol=1e-6)
    assert len(SegmentationModule(tiny(), CONFIG)({"image": images})) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rates_fall_polynomially_and_frozen_stages_stay(shapes, tmp_path, optimizer):
    network = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config = replace(CONFIG, optimizer=optimizer, head_factor=10.0, freeze_stages=2)
    recorder = Recorder()
    train_segmentation(network, shapes, tmp_path, config, [recorder])
    steps = 2 * 3  # batches of 8, 8 and 4 photos
    factor = [(1 - step / steps) ** 0.9 for step in range(steps)]
    assert [r[0] for r in recorder.rates] == pytest.approx([1e-3 * f for f in factor])
    assert [r[1] for r in recorder.rates] == pytest.approx([1e-2 * f for f in factor])
    moved = {n for n, p in network.state_dict().items() if not torch.equal(p, before[n])}
    assert not any(name.startswith(("backbone.stages.0", "backbone.stages.1")) for name in moved)
    assert {"head.branches.0.0.weight", "backbone.stages.2.1.weight"} <= moved


class Killed(Exception):
    pass


class Dies(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise Killed


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(shapes, tmp_path, capsys, workers):
    config = replace(CONFIG, epochs=3, workers=workers)
    whole = train_segmentation(tiny(), shapes, tmp_path / "whole", config)
    with pytest.raises(Killed):
        train_segmentation(tiny(), shapes, tmp_path / "cut", config, [Dies(epoch=1)])
    capsys.readouterr()
    resumed = train_segmentation(tiny(seed=5), shapes, tmp_path / "cut", config)
    printed = capsys.readouterr().out
    assert "epoch 2/3" in printed and "epoch 1/3" not in printed
    checkpoint = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 * 3  # no step was done twice
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    again = train_segmentation(tiny(seed=6), shapes, tmp_path / "cut", config)
    assert "epoch" not in capsys.readouterr().out
    assert torch.equal(again.head.branches[0][0].weight, states[0]["head.branches.0.0.weight"])


def test_draws_do_not_depend_on_the_number_of_workers(shapes, tmp_path):
    networks = [
        train_segmentation(tiny(), shapes, tmp_path / str(n), replace(CONFIG, epochs=1, workers=n))
        for n in (0, 2)
    ]
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bfloat16_trains_in_channels_last(shapes, tmp_path):
    class Layout(Callback):
        seen = None

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            weight = module.network.head.branches[0][0].weight
            self.seen = weight.is_contiguous(memory_format=torch.channels_last)

    config = replace(CONFIG, epochs=1, precision="bf16-mixed")
    network = train_segmentation(tiny(), shapes, tmp_path, config, [layout := Layout()])
    assert layout.seen
    assert all(p.isfinite().all() and p.is_contiguous() for p in network.parameters())


def batches(data, epoch, rank=0, world=1):
    data.trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=world)
    torch.manual_seed(epoch)
    return list(data.train_dataloader())


def test_epochs_differ_and_ranks_share_the_photos(shapes):
    data = SegmentationData(shapes, replace(CONFIG, batch_size=20, scale=(1.0, 1.0)))
    first, again, other = (batches(data, epoch)[0]["image"] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # Crops are whole photos here, perhaps mirrored: each is known by its sums of columns.
    whole = {frozenset(image.sum(dim=(0, 1)).tolist()) for image in first}
    ranks = [batches(data, 0, rank, world=2)[0]["image"] for rank in (0, 1)]
    shared = [{frozenset(image.sum(dim=(0, 1)).tolist()) for image in part} for part in ranks]
    assert len(shared[0]) == len(shared[1]) == 10 and shared[0] | shared[1] == whole


def test_recipes():
    deeplab, short = RECIPES["deeplab"], RECIPES["short"]
    assert deeplab == SegmentationTrainingConfig()
    # VOC's photos at half to one and a half times their size, in crops of 321.
    assert deeplab.transform == TrainTransform(321, scale=(250 / 321, 750 / 321))
    assert deeplab.num_epochs(10_582) == 19 and short.num_epochs(10_582) == 10
    assert short.changed(steps=110).num_epochs(437) == 2
    assert deeplab.changed(epochs=3, lr=1.0) == replace(deeplab, epochs=3, steps=None, lr=1.0)
    assert deeplab.changed(steps=1).num_epochs(10_582) == 1
    for wrong in ({"epochs": 3}, {"steps": None}, {"crop": 0}, {"loss_scales": ()}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(deeplab, **wrong)


def test_labels_of_a_folder_take_the_masks_place(shapes, shapes_root, tmp_path):
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    paths = [tmp_path / f"{image_id}.png" for image_id in photos.image_ids]
    for path in paths:
        shutil.copy(shapes_root / "SegmentationClass" / path.name, path)
    labelled = photos.with_masks(paths)
    assert labelled.check() == [] and photos.mask_path(0) is None
    assert torch.equal(labelled[3]["mask"], shapes[3]["mask"])
    paths[2].unlink()
    save_mask(paths[5], torch.zeros(10, 12, dtype=torch.uint8))
    save_mask(paths[7], torch.full((64, 64), 6, dtype=torch.uint8))
    Image.new("RGB", (64, 64)).save(paths[9])
    problems = labelled.check(decode=False)
    for problem, path, words in zip(
        problems,
        (paths[2], paths[5], paths[7], paths[9]),
        ("does not exist", "is 12 x 10, its photo 64 x 64", "has labels 6", "mode RGB"),
        strict=True,
    ):
        assert str(path) in problem and words in problem
    with pytest.raises(InputError, match="number 20"):
        photos.with_masks(paths[:3])


def test_what_cannot_be_trained(shapes, shapes_root, tmp_path):
    unlabelled = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    with pytest.raises(InputError, match="with_masks"):
        train_segmentation(tiny(), unlabelled, tmp_path, CONFIG)
    network = DeepLabV2("vgg_tiny", 4, weights=None, hidden_channels=8)
    with pytest.raises(InputError, match="4 classes, the data set 5"):
        train_segmentation(network, shapes, tmp_path, CONFIG)


@pytest.mark.parametrize("stride", [None, 16])
def test_windows_of_stems_are_learnt_and_resumed(shapes, tmp_path, stride):
    options = {"augment": "window", "scale": (1.0, 1.0), "freeze_stages": 1, "train_stride": stride}
    config = replace(CONFIG, crop=48, **options)
    whole, recorder = tiny(dilations=(4,)), Recorder()
    train_segmentation(whole, shapes, tmp_path / "whole", config, [recorder])
    assert recorder.masks[0][0].shape[1:] == (48, 48)
    assert not (tmp_path / "whole" / "stems").exists()
    assert whole.backbone.output_stride == 8 and whole.head.branches[0][0].dilation == (4, 4)
    assert sum(recorder.losses[1]) < sum(recorder.losses[0])

    class Kill(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                assert module.network.backbone.output_stride == (stride or 8)
                raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        train_segmentation(tiny(dilations=(4,)), shapes, tmp_path / "cut", config, [Kill()])
    network = tiny(dilations=(4,))
    train_segmentation(network, shapes, tmp_path / "cut", config)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name


@pytest.mark.parametrize(("stride", "other"), [(None, 16), (16, 8)])
def test_a_frozen_backbone_is_run_once_at_the_stride_of_training(shapes, tmp_path, stride, other):
    options = {"augment": "window", "scale": (1.0, 1.0), "freeze_stages": None}
    config = replace(CONFIG, epochs=1, crop=32, train_stride=stride, **options)
    folder = tmp_path / "stems"

    def train(name, config):
        torch.manual_seed(0)
        network = DeepLabV2("resnet18", 5, "largefov", (8,), weights=None)
        before = deepcopy(network.backbone).eval()
        train_segmentation(network, shapes, tmp_path / name, config, stem_folder=folder)
        for key, weight in network.backbone.state_dict().items():
            assert weight.equal(before.state_dict()[key]), key
        return before

    backbone, path = train("first", config), folder / "stem-64-pad.npy"
    with torch.no_grad():
        photo = shapes[0]["image"][None] / 255
        maps = backbone.set_output_stride(stride or 8)(photo)
    assert_close(FeatureBank(path)[[0]], maps, rtol=2e-3, atol=2e-3 * maps.std().item())
    stamp = path.stat().st_mtime_ns
    train("again", config)
    assert path.stat().st_mtime_ns == stamp
    train("other", replace(config, train_stride=other))
    assert FeatureBank(path).shape[2] == 64 // other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "scale must be"),
        ({"scale": (1.0, 1.0), "loss_scales": (1.0, 0.5)}, "loss_scales must be"),
        ({"scale": (1.0, 1.0)}, "freeze_stages"),
    ],
)
def test_windows_of_stems_have_one_scale_and_frozen_stages(options, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, augment="window", **options)


@pytest.mark.slow
def test_two_devices_step_along_the_mean_of_their_gradients(
    train_on_two_devices, shapes_root, tmp_path
):
    printed = train_on_two_devices("step", tmp_path, shapes_root)
    assert printed.count("epoch 1/1") == 1
    batches = [torch.load(tmp_path / f"batch{rank}-0.pt") for rank in (0, 1)]
    assert all(len(batch["image"]) == 10 for batch in batches)
    assert not torch.equal(batches[0]["mask"], batches[1]["mask"])
    network = tiny(hidden_channels=None)
    network.load_state_dict(torch.load(tmp_path / "before.pt"))
    after = torch.load(tmp_path / "after.pt")
    parameters = dict(network.named_parameters())
    losses = [segmentation_loss(network(batch["image"]), batch["mask"]) for batch in batches]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    for (name, before), gradient in zip(parameters.items(), gradients, strict=True):
        assert gradient.any()
        torch.testing.assert_close(after[name], before.detach() - 0.1 * gradient)
