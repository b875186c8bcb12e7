"""Networks in ONNX files whose convolutions compute in 8 bits."""

import logging
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from pgnn_geo.errors import InputError


def quantized(model: Any, name: str, images: Sequence[Tensor]) -> Any:
    """Return an ONNX model whose convolutions compute in 8 bits, by onnxruntime's quantization.

    Weights have a scale for each channel. The range of each convolution's input is the one that
    occurs on :obj:`images`, so these must be like those that the network will see. Everything
    else stays in float32.

    Args:
        model (onnx.ModelProto): The model, in float32.
        name (str): Its input.
        images (sequence of torch.Tensor): What it is shown, :obj:`[1, 3, h, w]` each.

    Raises:
        InputError: If there are no images, or onnxruntime is missing.
    """
    if find_spec("onnxruntime") is None:
        raise InputError("int8 needs onnxruntime: pip install 'pgnn-geo[onnx]'")
    if not images:
        raise InputError("int8 needs photos: the ranges of numbers are those that occur on them")
    import onnx
    from onnxruntime import quantization

    class Shown(quantization.CalibrationDataReader):
        """Shows one image after the other."""

        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            """Return the next input, or None at the end."""
            image = next(self.images, None)
            return None if image is None else {name: image.contiguous().numpy()}

    log = logging.getLogger()
    level = log.level
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "int8.onnx"
        try:
            log.setLevel(logging.ERROR)  # advice to its own users goes to the root logger
            quantization.quantize_static(
                model,
                result,
                Shown(),
                per_channel=True,
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv"],
            )
        finally:
            log.setLevel(level)
        return onnx.load(result)
