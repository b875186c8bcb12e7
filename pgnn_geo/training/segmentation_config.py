"""Hyper-parameters of stage 2, and its recipes."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from pgnn_geo.datasets import TrainTransform
from pgnn_geo.errors import InputError
from pgnn_geo.nn.deeplab import HeadName
from pgnn_geo.precision import Precision

RecipeName = Literal["short", "deeplab", "light"]


@dataclass(frozen=True)
class SegmentationTrainingConfig:
    """Hyper-parameters of stage 2; the default values are the recipe of DeepLab-v2.

    Args:
        head (str): :obj:`"aspp"` (four dilations) or :obj:`"largefov"` (one).
        normalize (bool): Scale features to a root mean square of one before the head, see
            :class:`~pgnn_geo.nn.deeplab.DilatedHead`.
        propagation (float, optional): Power of the similarities along which probabilities travel
            when the network is evaluated, see :class:`~pgnn_geo.nn.DeepLabV2`; null for none.
        freeze_stages (int, optional): Leading stages of the backbone that are not trained; null for
            all of them.
        epochs (int, optional): Passes over the photos, if :obj:`steps` is not given.
        steps (int, optional): Optimizer steps instead of epochs, rounded to whole epochs.
        batch_size (int): Crops in a batch, on each device.
        size (int): Long side of a photo at scale 1 in pixels, in training and prediction; VOC's
            photos have 500.
        crop (int): Side of the training crops in pixels.
        augment (str): :obj:`"crop"`: random scale, crop and mirroring of the photo, everything
            computed anew each time. :obj:`"window"`: photos are passed through the frozen stages
            once, at scale 1 and mirrored, which is kept on disk; each visit sees a random crop of
            that. With all stages of a VGG frozen at stride 16 this takes 0.8 MB a photo of side
            320, with four 3.3 MB.
        scale (tuple of float): Range of the random scale.
        train_stride (int, optional): Stride of the logits in training, if it is not that of the
            network, see :meth:`DeepLabV2.at_output_stride
            <pgnn_geo.nn.DeepLabV2.at_output_stride>`.
        loss_scales (tuple of float): Scales of a crop at which the loss is taken; with more than
            one, also of the maximum of their logits.
        optimizer (str): :obj:`"sgd"` or :obj:`"adamw"`.
        lr (float): Initial learning rate of the backbone.
        head_factor (float): Multiple of it for the head.
        momentum (float): Of SGD.
        weight_decay (float): Weight decay, decoupled in AdamW.
        seed (int): Seed of initialisation, order and augmentation.
        precision (str): :obj:`"auto"` or one of Lightning's names.
        workers (int): Loader processes, of each device.
        devices (int): GPUs, or processes where there is no GPU, that the training starts itself; 1
            where it is started in several processes. A step has :obj:`batch_size` crops of each, so
            with twice the devices or processes an epoch has half the steps.

    Raises:
        InputError: If not exactly one of :obj:`epochs` and :obj:`steps` is given, a value is out of
            range, or :obj:`augment="window"` is asked for other scales or without frozen stages.
    """

    head: HeadName = "aspp"
    normalize: bool = False
    propagation: float | None = None
    freeze_stages: int | None = 0
    epochs: int | None = None
    steps: int | None = 20_000
    batch_size: int = 10
    size: int = 500
    crop: int = 321
    augment: Literal["crop", "window"] = "crop"
    scale: tuple[float, float] = (0.5, 1.5)
    train_stride: int | None = None
    loss_scales: tuple[float, ...] = (1.0,)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    head_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    precision: Precision = "auto"
    workers: int = 1
    devices: int = 1

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise InputError(
                f"want either 'epochs' or 'steps', got epochs={self.epochs} and steps={self.steps}"
            )
        for name in ("epochs", "steps", "batch_size", "size", "crop", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"'{name}' must be 1 or more, got {value}")
        if not self.loss_scales or min(self.loss_scales) <= 0:
            raise InputError(f"'loss_scales' must be positive, got {self.loss_scales}")
        if self.augment == "window":
            self._check_window()

    def _check_window(self) -> None:
        wanted = {"scale": (1.0, 1.0), "loss_scales": (1.0,)}
        for name, value in wanted.items():
            if tuple(getattr(self, name)) != value:
                raise InputError(
                    f"augment='window' has one scale: {name} must be {value}, "
                    f"got {getattr(self, name)}"
                )
        if self.freeze_stages is not None and self.freeze_stages < 1:
            raise InputError(
                "augment='window' needs 'freeze_stages' of 1 or more, got 0; without frozen stages "
                "want augment='crop'"
            )

    def changed(self, **values: Any) -> "SegmentationTrainingConfig":
        """Return a copy with other values; one of epochs and steps takes the other's place."""
        for name, other in (("epochs", "steps"), ("steps", "epochs")):
            if values.get(name) is not None:
                values.setdefault(other, None)
        return replace(self, **values)

    def num_epochs(self, photos: int, processes: int = 1) -> int:
        """Number of passes over so many photos, started in so many processes."""
        if self.epochs is not None:
            return self.epochs
        assert self.steps is not None
        return max(
            1, round(self.steps / -(-photos // (self.batch_size * self.devices * processes)))
        )

    @property
    def transform(self) -> TrainTransform:
        """Random scale, crop and mirroring; its own unit of scale is the crop, not the photo."""
        low, high = (self.size * scale / self.crop for scale in self.scale)
        return TrainTransform(self.crop, scale=(low, high))


#: ``short`` is for hundreds of photos on a CPU, ``deeplab`` for thousands on a GPU, ``light`` for
#: torchvision's networks.
RECIPES: dict[RecipeName, SegmentationTrainingConfig] = {
    "short": SegmentationTrainingConfig(
        head="largefov",
        normalize=True,
        propagation=1.0,
        freeze_stages=None,
        epochs=10,
        steps=None,
        batch_size=8,
        size=320,
        crop=256,
        augment="window",
        scale=(1.0, 1.0),
        train_stride=16,
        optimizer="adamw",
        lr=2e-4,
        head_factor=5.0,
        weight_decay=1e-2,
    ),
    "deeplab": SegmentationTrainingConfig(),
    "light": SegmentationTrainingConfig(
        epochs=30,
        steps=None,
        batch_size=8,
        size=320,
        crop=256,
        scale=(0.75, 1.5),
        optimizer="adamw",
        lr=5e-4,
        head_factor=2.0,
        weight_decay=1e-2,
    ),
}
