r"""Attention maps of a whole data set: partner groups averaged, over scales and mirroring."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset, partner_groups
from pgnn_geo.errors import InputError
from pgnn_geo.labels.feature_bank import FeatureBank
from pgnn_geo.labels.features import Progress, View, feature_batches, no_progress, stem_bank
from pgnn_geo.nn import PGNN


@dataclass(frozen=True)
class MapConfig:
    """How attention maps are inferred.

    Args:
        size (int): Side of the square that photos are squashed to, in pixels.
        scales (sequence of float): Multiples of :obj:`size`; the maps are summed.
        flip (bool): Add the mirrored photo's maps.
        partners (int): Groups that are averaged for each photo and class.
        group_size (int): Photos in a group, as in training.
        output_stride (int): Stride of the feature map.
        seed (int): Seed of the choice of partners.
    """

    size: int = 320
    scales: Sequence[float] = (1.0,)
    flip: bool = True
    partners: int = 3
    group_size: int = 3
    output_stride: int = 8
    seed: int = 0

    def views(self) -> list[View]:
        """Every scale, as it is and mirrored."""
        sizes = [max(16, round(self.size * scale / 16) * 16) for scale in self.scales]
        return [View(s, flip) for s in sizes for flip in ((False, True) if self.flip else (False,))]


@torch.inference_mode()
def attention_maps(
    model: PGNN,
    dataset: TaggedDataset,
    config: MapConfig | None = None,
    stem_folder: Path | None = None,
    scratch_folder: Path | None = None,
    progress: Progress = no_progress,
) -> list[Tensor]:
    r"""Return the attention maps of every photo's tagged classes.

    For photo :math:`i` and class :math:`c`, :obj:`partners` groups are made of the photo and
    others tagged :math:`c`; which ones depends on the seed, the photo and the class alone, never
    on the batch. With :math:`s` the class scores in a view (scale, mirroring)

    .. math::
        A_{i,c} = \mathrm{norm} \sum_{\text{views}} \mathrm{ReLU} \Bigl(
        \frac{1}{P} \sum_{p=1}^{P} s_{i,c}^{(p)} \Bigr)

    Without a graph (:obj:`layers=0`) there are no groups and this is the CAM.

    Args:
        model (PGNN): The network; its output stride is set for the time of the call.
        dataset (TaggedDataset): Photos with tags.
        config (MapConfig, optional): How; default values if not given.
        stem_folder (Path, optional): Where outputs of frozen stages are kept for reuse; computed
            afresh if not given.
        scratch_folder (Path, optional): Where one view's features are put for the time of the
            call: :math:`2 M C h w` bytes. The system's temporary folder if not given.
        progress (callable, optional): Progress display.

    Returns:
        For each photo, maps :obj:`[k, h, w]` in :math:`[0, 1]` of its :obj:`k` tagged classes in
        the order of the classes; :math:`h = w` = size / stride.

    Raises:
        InputError: If the data set has no tags.
    """
    config = config or MapConfig()
    if dataset.tags is None:
        raise InputError("Attention maps need image tags; this split has none.")
    tags = dataset.tags.bool()
    owners, classes = tags.nonzero(as_tuple=True)  # one row for each photo and class
    training, stride = model.training, model.backbone.output_stride
    model.eval()
    model.backbone.set_output_stride(config.output_stride)
    side = -(-config.size // config.output_stride)
    total = torch.zeros(len(owners), side, side)
    try:
        for view in config.views():
            stems = None
            if stem_folder is not None and model.backbone.frozen_stages:
                stems = stem_bank(model.backbone, dataset, stem_folder, view, progress)
            with tempfile.TemporaryDirectory(dir=scratch_folder, prefix="features-") as scratch:
                features = FeatureBank.build(
                    Path(scratch) / "features.npy",
                    progress(
                        feature_batches(model.backbone, dataset, view, stems),
                        f"features, {view}",
                        -(-len(dataset) // 8),
                    ),
                    len(dataset),
                    {"view": str(view)},
                )
                scores = _class_scores(model, features, tags, owners, classes, config)
            if view.flip:
                scores = scores.flip(-1)
            scores = F.interpolate(
                scores.relu()[:, None], (side, side), mode="bilinear", align_corners=False
            )
            total += scores[:, 0]
    finally:
        model.backbone.set_output_stride(stride)
        model.train(training)
    total /= total.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)
    return list(total.split(tags.sum(dim=1).tolist()))


def _class_scores(
    model: PGNN,
    features: FeatureBank,
    tags: Tensor,
    owners: Tensor,
    classes: Tensor,
    config: MapConfig,
) -> Tensor:
    """Return the score maps :obj:`[R, h, w]` of R photos :obj:`owners` and :obj:`classes`."""
    device = model.backbone.mean.device
    if model.blocks:  # [R, partners * group_size], the photo itself first in each group
        groups = partner_groups(
            tags, partners=config.partners, group_size=config.group_size, seed=config.seed
        )
        members = groups.indices.view(len(owners), -1)
    else:
        members = owners[:, None]
    size = config.group_size if model.blocks else 1
    result = []
    for rows, labels in zip(members.split(4), classes.split(4), strict=True):
        images, inverse = rows.flatten().unique(return_inverse=True)
        x = features[images][inverse].to(device)
        group = torch.arange(len(x), device=device) // size
        scores = model.forward_features(x, group=group).scores  # [4 P N, K, h, w]
        anchors = scores.view(len(rows), -1, size, *scores.shape[1:])[:, :, 0].mean(dim=1)
        picked = labels.to(device).view(-1, 1, 1, 1).expand(-1, 1, *anchors.shape[-2:])
        result.append(anchors.gather(1, picked)[:, 0].float().cpu())
    return torch.cat(result)
