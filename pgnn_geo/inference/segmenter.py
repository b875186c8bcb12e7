"""A trained segmentation network with all it takes to use it, in one folder or on the Hub."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.onnx_file import SUFFIX, OnnxNetwork, read_onnx, write_onnx
from pgnn_geo.io.segmenter_folder import (
    SegmenterContent,
    find_segmenter,
    push_segmenter,
    read_segmenter,
    write_segmenter,
)
from pgnn_geo.nn.photo_views import MAX_SIDE, PhotoNetwork, photo_views
from pgnn_geo.nn.view_average import ViewAverage
from pgnn_geo.precision import Precision, default_device


class Segmenter:
    r"""A segmentation network, its class names, and what it was trained from.

    Photos are uint8 tensors :obj:`[3, H, W]`, RGB and upright, as
    :func:`torchvision.io.decode_image` or :func:`~pgnn_geo.datasets.load_photo` return them. The
    network sees the whole photo, its longer side brought to :obj:`side`: objects are then as large
    as those that it was trained on. It is not cut into tiles, as a tile out of the middle of a
    horse shows no horse.

    Args:
        network (PhotoNetwork): The network, trained.
        classes (sequence of str): Names of its :math:`K` classes.
        ledger (SupervisionLedger): What it was trained from.
        metrics (dict, optional): JSON-ready scores for the model card, such as
            :meth:`~pgnn_geo.metrics.SegmentationScores.to_dict`. (default: :obj:`None`)
        side (int, optional): Length of the longer side of a photo in the network at scale 1, as in
            training; its own if not given. (default: :obj:`None`)

    Raises:
        InputError: If the classes do not fit the network.

    .. code-block:: python

        segmenter = Segmenter.from_pretrained("runs/voc/segmenter")
        photo = torchvision.io.decode_image("photo.jpg", "RGB")
        probabilities = segmenter.predict(photo)  # [K + 1, H, W]
        mask = segmenter.label(photo)  # [H, W], 0 is background
    """

    def __init__(
        self,
        network: PhotoNetwork,
        classes: Sequence[str],
        ledger: SupervisionLedger,
        metrics: dict[str, Any] | None = None,
        side: int | None = None,
    ) -> None:
        if len(classes) != network.num_classes:
            raise InputError(
                f"The network has {network.num_classes} classes, but {len(classes)} names were "
                f"given: {', '.join(classes)}."
            )
        if side is not None and side < 1:
            raise InputError(f"'side' must be positive, got {side}.")
        self.network = network
        self.classes = tuple(classes)
        self.ledger = ledger
        self.metrics = metrics
        self.side = side

    def __repr__(self) -> str:
        name = self.network.config.get("backbone", "onnx")
        return f"{self.__class__.__name__}({name}, {self.classes})"

    def to(self, device: str) -> "Segmenter":
        """Move the network to a device; :obj:`"auto"` is a GPU if there is one that it runs on.

        Raises:
            InputError: If the network cannot run there.
        """
        if isinstance(self.network, OnnxNetwork):
            if device not in ("auto", "cpu"):
                raise InputError(f"device '{device}': an ONNX file runs on the CPU here")
            return self
        try:
            self.network.to(default_device() if device == "auto" else device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError(f"device '{device}' cannot be used: {error}") from error
        return self

    def check_precision(self, precision: Precision) -> None:
        """Raise an :class:`InputError` if the network cannot run in a precision."""
        if isinstance(self.network, OnnxNetwork) and precision not in ("auto", "32-true"):
            raise InputError(f"precision '{precision}': an ONNX file runs in 32-true")

    def views(
        self,
        image: Tensor,
        scales: Sequence[float] = (1.0,),
        flip: bool = True,
        precision: Precision = "auto",
        max_side: int | None = MAX_SIDE,
        tags: Tensor | None = None,
        side: int | None = None,
    ) -> ViewAverage:
        """Run the network on every view of a photo.

        Args:
            image, scales, flip, precision, max_side, tags: As in :meth:`predict`.
            side (int, optional): Length of the longer side at scale 1, the photo's own if not
                given: :attr:`side` is not looked at. (default: :obj:`None`)
        """
        self.check_precision(precision)
        return photo_views(self.network, image, scales, flip, precision, max_side, tags, side)

    def predict(
        self,
        image: Tensor,
        scales: Sequence[float] = (1.0,),
        flip: bool = True,
        size: Sequence[int] | None = None,
        precision: Precision = "auto",
        max_side: int | None = MAX_SIDE,
        tags: Tensor | None = None,
    ) -> Tensor:
        """Return label probabilities :obj:`[K + 1, H, W]`, float32, the background's first.

        They take :math:`4 (K + 1)` bytes per pixel; where only labels are needed, :meth:`label`
        takes one.

        Args:
            image (torch.Tensor): Photo :obj:`[3, H, W]`, uint8.
            scales (sequence of float): Multiples of :attr:`side` that are averaged.
            flip (bool): Average with the mirrored photo. (default: :obj:`True`)
            size (sequence of int, optional): Height and width of the result, by default the
                photo's.
            precision (str): :obj:`"auto"` or one of Lightning's names. (default: :obj:`"auto"`)
            max_side (int, optional): Longer side to which larger photos are scaled down before
                all else, which bounds the memory; :obj:`None` for no bound. (default: :obj:`1024`)
            tags (torch.Tensor, optional): Multi-hot tags :obj:`[K]`; other classes get
                probability zero.

        Raises:
            InputError: If the photo is no such tensor, or an argument is out of range.
        """
        views = self.views(image, scales, flip, precision, max_side, tags, self.side)
        return views.probabilities(image.shape[1:] if size is None else size)

    def label(
        self,
        image: Tensor,
        scales: Sequence[float] = (1.0,),
        flip: bool = True,
        size: Sequence[int] | None = None,
        precision: Precision = "auto",
        max_side: int | None = MAX_SIDE,
        tags: Tensor | None = None,
    ) -> Tensor:
        """Return the most probable labels :obj:`[H, W]`, uint8; arguments as :meth:`predict`."""
        views = self.views(image, scales, flip, precision, max_side, tags, self.side)
        return views.labels(image.shape[1:] if size is None else size)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write :obj:`model.safetensors`, :obj:`config.json` and a model card :obj:`README.md`.

        The folder is there complete or not at all; a segmenter that stood there is replaced.

        Args:
            folder (str or PathLike): The folder.

        Raises:
            InputError: If the folder holds other files, cannot be written, or the package
                :obj:`safetensors` is missing.
        """
        content = SegmenterContent(self.network, self.classes, self.ledger, self.metrics, self.side)
        write_segmenter(Path(folder), content)
        return Path(folder)

    def export_onnx(
        self, path: str | os.PathLike[str], int8: Iterable[Tensor] | None = None
    ) -> Path:
        """Write the network as one ONNX file (extra :obj:`onnx`), see :func:`write_onnx`.

        Args:
            path (str or PathLike): The file, which ends in ``.onnx``.
            int8 (iterable of torch.Tensor, optional): Photos :obj:`[3, H, W]`, uint8, such as it
                will see; its convolutions then compute in 8 bits. (default: :obj:`None`)

        Raises:
            InputError: If it cannot be written, or packages are missing.
        """
        content = SegmenterContent(self.network, self.classes, self.ledger, self.metrics, self.side)
        write_onnx(Path(path), content, int8)
        return Path(path)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], revision: str | None = None
    ) -> "Segmenter":
        """Read a segmenter, ready to predict; nothing is unpickled and no code is run.

        Args:
            path (str or PathLike): A folder of :meth:`save_pretrained`, a file of
                :meth:`export_onnx`, or the id :obj:`"owner/name"` of a repository on the Hugging
                Face Hub (extra :obj:`hub`).
            revision (str, optional): Branch, tag or commit on the Hub. (default: :obj:`None`)

        Raises:
            InputError: If it is not there, is damaged, or is not a segmenter of this package.
        """
        if os.fspath(path).endswith(SUFFIX):
            return cls(*read_onnx(path))
        return cls(*read_segmenter(find_segmenter(os.fspath(path), revision)))

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        message: str = "Upload segmenter",
        revision: str | None = None,
    ) -> str:
        """Upload the files of :meth:`save_pretrained` to the Hugging Face Hub (extra :obj:`hub`).

        Args:
            repo_id (str): :obj:`"owner/name"`; the repository is made if it is missing.
            private (bool, optional): For a new repository. (default: the owner's setting)
            message (str): Of the commit. (default: :obj:`"Upload segmenter"`)
            revision (str, optional): Branch. (default: :obj:`None`)

        Returns:
            The commit's address.

        Raises:
            InputError: If the Hub refuses or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "segmenter")
            return push_segmenter(folder, repo_id, private, message, revision)
