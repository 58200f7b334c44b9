"""int8 files of other quantizers, with the same calibration images: onnxruntime's, and those of LiteRT's converter."""

import importlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from common import encode
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from firebox.export import ExportConfig
from firebox.model_zoo import Network
from firebox.runtime import LabelledImages, Session, read_graph, sample
from firebox.runtime.contract import TensorSpec
from firebox.runtime.inference.installed import BACKENDS

StockQuantizer = Literal["pt2e", "ai-edge-quantizer", "ai-edge-quantizer-minmax"]

# The requirements of the stock converter's environment, and the script that runs in it.
STOCK_REQUIREMENTS = Path(__file__).with_name("stock_litert") / "requirements.txt"
STOCK_SCRIPT = STOCK_REQUIREMENTS.with_name("convert.py")
# The number of output lines to repeat when the stock converter fails.
_LAST_LINES = 5


class Feeds(CalibrationDataReader):
    """Calibration images for onnxruntime's quantizer."""

    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]):
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input by name, or ``None`` at the end."""
        return next(self._feeds, None)


def quantize_with_onnxruntime(folder: Path, images: LabelledImages) -> Path:
    """Quantize the float32 file with onnxruntime's options for x86 and firebox's calibration images."""
    source, prepared, target = (folder / name for name in ("model.float32.onnx", "prepared.onnx", "quantized.onnx"))
    config, session, name = ExportConfig(), Session(source), read_graph(source).inputs[0]
    drawn = sample(images, config.calibration_images, config.seed)
    crops = (session.preprocessing.crop(drawn.read(image), image) for image in drawn.names)
    quant_pre_process(source, prepared)
    quantize_static(
        prepared,
        target,
        Feeds({name: encode(session, pixels)} for pixels in crops),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return target


def convert_with_stock(
    python: Path, quantizer: StockQuantizer, network: Network, images: LabelledImages, target: Path
) -> Path:
    """Convert the network to an int8 .tflite with the stock converter, calibrated with all ``images``; ``python`` is
    the interpreter of its environment."""
    preprocessing = network.preprocessing
    crops = (preprocessing.crop(images.read(name), images.where(name)) for name in images.names)
    inputs = np.stack([preprocessing.normalize(pixels).transpose(2, 0, 1) for pixels in crops]).astype(np.float32)
    program = torch.export.export(network.module, (torch.from_numpy(inputs[:1]),))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("network.pt2", "inputs.npy")]
        torch.export.save(program, files[0])
        np.save(files[1], inputs)
        command = [python, STOCK_SCRIPT, quantizer, *files, target]
        ended = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise click.ClickException("\n".join([f"{python} failed:", *ended.stderr.splitlines()[-_LAST_LINES:]]))
    return target


def stock_version() -> str:
    """The pinned versions of the converter and its quantizers."""
    wanted = ("litert-torch", "torchao", "ai-edge-quantizer")
    pins = dict(line.split("==") for line in STOCK_REQUIREMENTS.read_text().splitlines() if "==" in line)
    return ", ".join(f"{name} {pins[name]}" for name in wanted)


def open_stock(path: Path, network: Network) -> Callable[[np.ndarray], np.ndarray]:
    """A .tflite of the stock converter in LiteRT, on one thread: pixels (height, width, channels) to logits (classes,).
    The file has no firebox contract, so the runtime provides the quantization of its input and output."""
    interpreter: Any = importlib.import_module(BACKENDS["litert"].module).Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(pixels: np.ndarray) -> np.ndarray:
        x = network.preprocessing.normalize(pixels).transpose(2, 0, 1)[None]
        interpreter.set_tensor(source["index"], _spec(source).encode(x))
        interpreter.invoke()
        return _spec(target).decode(interpreter.get_tensor(target["index"])).reshape(-1)

    return run


def _spec(details: dict[str, Any]) -> TensorSpec:
    scale, zero_point = details["quantization"]
    return TensorSpec(np.dtype(details["dtype"]).name, tuple(details["shape"]), scale or None, zero_point)
