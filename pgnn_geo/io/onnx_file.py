"""Segmenters as one ONNX file, for programs without PyTorch, and read back from it."""

import io
import json
import os
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.model_folder import sha256_of
from pgnn_geo.io.onnx_int8 import quantized
from pgnn_geo.io.segmenter_folder import SegmenterContent
from pgnn_geo.nn.photo_views import PhotoNetwork, evaluating, photo_pixels
from pgnn_geo.nn.segmentation_network import SegmentationNetwork

SUFFIX = ".onnx"
_FORMAT = "pgnn_geo segmenter onnx 1"
_INPUT, _OUTPUT, _KEY = "images", "logits", "pgnn_geo"
_CLASSES, _SIDE = "classes", "side"


class OnnxNetwork(PhotoNetwork):
    r"""A network in an ONNX file, computed by onnxruntime on the CPU in float32.

    Args:
        path (Path): The file.

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, RGB in :math:`[0, 1]`
        - **output:** logits :math:`(B, K+1, h, w)`, the first the background's

    Raises:
        InputError: If the file cannot be read, has other inputs and outputs, or onnxruntime is
            missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = _session(path)
        ports = [port.name for port in (*self.session.get_inputs(), *self.session.get_outputs())]
        if ports != [_INPUT, _OUTPUT]:
            raise InputError(
                f"'{path}' is no segmenter of this package: it has {', '.join(ports)}, want "
                f"{_INPUT} and {_OUTPUT}"
            )
        self.num_classes = self.session.get_outputs()[0].shape[1] - 1
        self.config = {"onnx": sha256_of(path)}

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits at the stride that the network was exported with."""
        pixels = images.detach().float().contiguous().numpy()
        return torch.from_numpy(self.session.run([_OUTPUT], {_INPUT: pixels})[0])


def write_onnx(path: Path, content: SegmenterContent, int8: Iterable[Tensor] | None = None) -> None:
    """Write a segmenter as one ONNX file, atomically; its parameters lie in the file.

    The input :obj:`images` is :math:`(B, 3, H, W)` float32, RGB in :math:`[0, 1]`, of any size;
    the output :obj:`logits` is :math:`(B, K+1, h, w)`. The metadata has the names of the classes
    as :obj:`classes` (a JSON list), the longer side at which photos are shown as :obj:`side`
    (empty for their own size), and under :obj:`pgnn_geo` what :func:`read_onnx` needs.

    Args:
        path (Path): The file, which ends in ``.onnx``.
        content (SegmenterContent): The segmenter.
        int8 (iterable of torch.Tensor, optional): Photos for :func:`quantized`, which are shown
            at the segmenter's side. (default: computed in float32)

    Raises:
        InputError: If the file cannot be written or is called something else, or packages of the
            extra :obj:`onnx` are missing.
    """
    if path.suffix != SUFFIX:
        raise InputError(f"'{path}': want a file that ends in {SUFFIX}")
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'pgnn-geo[onnx]'")
    network, classes, ledger, metrics, side = content
    if not isinstance(network, SegmentationNetwork):
        raise InputError("this segmenter was read from an ONNX file; copy that")
    example, any_size = torch.rand(2, 3, 65, 97, device=network.device), torch.export.Dim.DYNAMIC
    with evaluating(network), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter, to its own developers
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},),
        )
    assert program is not None  # as the exporter is asked for no file
    model = program.model_proto
    if int8 is not None:
        seen = [photo_pixels(p, 1.0 if side is None else side / max(p.shape[1:])) for p in int8]
        model = quantized(model, _INPUT, seen)
    values = {
        "format": _FORMAT,
        "supervision": ledger.to_dict(),
        "metrics": metrics,
        "network": network.config,
    }
    known = {
        _CLASSES: json.dumps(list(classes)),
        _SIDE: "" if side is None else str(side),
        _KEY: json.dumps(values),
    }
    for key, value in known.items():
        model.metadata_props.add(key=key, value=value)
    try:
        with atomic_write(path) as handle:
            handle.write(model.SerializeToString())
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error}") from error


def read_onnx(path: str | os.PathLike[str]) -> SegmenterContent:
    """Read what :func:`write_onnx` wrote.

    Raises:
        InputError: If it is not there, is damaged, is another network than a segmenter of this
            package, or onnxruntime is missing.
    """
    path = Path(path)
    network = OnnxNetwork(path)
    found: dict[str, str] = network.session.get_modelmeta().custom_metadata_map
    try:
        values: Any = json.loads(found[_KEY])
        if values["format"] != _FORMAT:
            raise ValueError(values["format"])
        classes = tuple(str(name) for name in json.loads(found[_CLASSES]))
        if len(classes) != network.num_classes:
            raise ValueError(f"{len(classes)} names for {network.num_classes} classes")
        side = int(found[_SIDE]) if found[_SIDE] else None
        ledger, metrics = SupervisionLedger.from_dict(values["supervision"]), values["metrics"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"'{path}' is no segmenter of this package ({_FORMAT!r}): {error!r}; want a file that "
            "'pgnn-geo export' wrote"
        ) from error
    return SegmenterContent(network, classes, ledger, metrics, side)


def _session(path: Path) -> Any:
    if find_spec("onnxruntime") is None:
        raise InputError(f"'{path}' needs onnxruntime: pip install 'pgnn-geo[onnx]'")
    import onnxruntime

    if not path.is_file():
        raise InputError(f"There is no ONNX file '{path}'.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is in the error
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a library in C++, whose errors share no base class
        raise InputError(f"'{path}' cannot be read as ONNX: {error}") from error
