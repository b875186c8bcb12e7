"""A backbone and what was learned on its features: all it takes to label tagged photos."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features import (
    FeatureBank,
    FrozenFeatureConfig,
    Progress,
    frozen_features,
    no_progress,
    resident,
)
from pgnn_geo.features.views import digest_of_tensors
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.model_folder import (
    fitting_content,
    load_tensors,
    read_model_folder,
    write_model_folder,
)
from pgnn_geo.labels.evidence import EvidenceConfig, check_tags
from pgnn_geo.labels.frozen import EvidenceModel, fit_evidence
from pgnn_geo.nn.backbones import Backbone, BackboneSource
from pgnn_geo.ranks import ALONE, Ranks

_BACKBONE = "backbone."


class Labeller:
    """What makes attention maps of tagged photos, in one folder.

    Args:
        source (BackboneSource): Where its backbone comes from.
        backbone (Backbone): That backbone.
        features (FrozenFeatureConfig): How it sees photos.
        model (EvidenceModel): What was learned on its features.
        classes (tuple of str): Names of the classes.
        ledger (SupervisionLedger): What it was made from.
        labels (mapping): How label images were made from its maps: plain values that are kept with
            it. (default: none)
    """

    def __init__(
        self,
        source: BackboneSource,
        backbone: Backbone,
        features: FrozenFeatureConfig,
        model: EvidenceModel,
        classes: tuple[str, ...],
        ledger: SupervisionLedger,
        labels: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.backbone = source, backbone
        self.features, self.model = features, model
        self.classes, self.ledger = classes, ledger
        self.labels = dict(labels or {})

    @classmethod
    def fit(
        cls,
        source: BackboneSource,
        dataset: TaggedDataset,
        folder: Path,
        ledger: SupervisionLedger,
        features: FrozenFeatureConfig | None = None,
        config: EvidenceConfig | None = None,
        labels: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        progress: Progress = no_progress,
        ranks: Ranks = ALONE,
    ) -> "Labeller":
        """Learn from the tags of photos.

        Args:
            source (BackboneSource): The backbone to ask.
            dataset (TaggedDataset): Photos with tags.
            folder (Path): Where the bank of their features is kept.
            ledger (SupervisionLedger): What this is made from.
            features, config, labels: See :class:`Labeller`; default values if not given.
            device (torch.device or str): Where to compute. (default: :obj:`"cpu"`)
            progress (callable, optional): Progress display.
            ranks (Ranks): The processes that share the photos. (default: this one alone)

        Raises:
            InputError: If the photos have no tags, or all have one in common.
        """
        if dataset.tags is None:
            raise InputError("Learning from tags needs image tags; this split has none.")
        check_tags(dataset.tags)  # before the features, which take a while
        features = features or FrozenFeatureConfig()
        backbone = source.build().to(device)
        bank = frozen_features(backbone, dataset, folder, features, progress, ranks)
        model = fit_evidence(resident(bank, device), dataset.tags, config, device, ranks)
        return cls(source, backbone, features, model, dataset.classes, ledger, labels)

    def bank(
        self,
        dataset: TaggedDataset,
        folder: Path,
        progress: Progress = no_progress,
        ranks: Ranks = ALONE,
    ) -> FeatureBank:
        """Return the features of photos as this sees them, see :func:`frozen_features`."""
        return frozen_features(self.backbone, dataset, folder, self.features, progress, ranks)

    def to(self, device: torch.device | str) -> "Labeller":
        """Move to a device."""
        self.backbone.to(device)
        self.model.to(device)
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write :obj:`model.safetensors` and :obj:`config.json`.

        The weights of the backbone are written only if they have no name by which to find them.

        Raises:
            InputError: If the folder holds other files or cannot be written.
        """
        state = self.model.state_dict()
        weights, source = self.backbone.state_dict(), self.source.kept()
        if source.weights is None:
            state |= {_BACKBONE + name: value for name, value in weights.items()}
        values = {
            "backbone": source._asdict(),
            "backbone_sha256": digest_of_tensors(weights.values()),
            "features": asdict(self.features),
            "evidence": asdict(self.model.config),
            "channels": self.model.channels,
            "classes": list(self.classes),
            "labels": self.labels,
            "supervision": self.ledger.to_dict(),
        }
        write_model_folder(folder, "evidence model", state, values)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Labeller":
        """Read what :meth:`save` wrote; nothing is unpickled.

        Raises:
            InputError: If it is not there, is damaged, or its backbone has other weights now.
        """
        path = Path(folder)
        state, values = read_model_folder(path, "evidence model")
        with fitting_content(path):
            source = BackboneSource(**values["backbone"])
            features = FrozenFeatureConfig(**values["features"])
            classes = tuple(str(name) for name in values["classes"])
            config = EvidenceConfig(**_without_memory(path, values["evidence"]))
            channels = state["evidence"].size(1)  # not a number that the file merely claims
            if values["channels"] != channels:
                raise ValueError(f"{values['channels']} channels, the weights have {channels}")
            model = EvidenceModel(len(classes), channels, config)
            ledger = SupervisionLedger.from_dict(values["supervision"])
            digest, labels = values["backbone_sha256"], dict(values["labels"])
        own = {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
        backbone = source.build()
        if source.weights is None:
            load_tensors(backbone, own, path)
        load_tensors(model, {k: v for k, v in state.items() if not k.startswith(_BACKBONE)}, path)
        if digest_of_tensors(backbone.state_dict().values()) != digest:
            raise InputError(
                f"{path} was made with other weights of {source.name} than {source.weights!r} "
                "are here."
            )
        return cls(source, backbone, features, model, classes, ledger, labels)


def _without_memory(path: Path, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of evidence; version 0.2.0 had a memory of labels as well."""
    if size := evidence.get("memory"):
        raise InputError(
            f"{path} has a memory of labels, memory={size}, which ended with version 0.2.0: fit it "
            "again without, the labels are as good"
        )
    return {name: value for name, value in evidence.items() if not name.startswith("memory")}
