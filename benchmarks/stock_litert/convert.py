"""Converts a torch program to an int8 .tflite with the stock PyTorch-to-LiteRT converter and one of its quantizers.

Runs in its own environment (requirements.txt), without firebox. Takes a network saved by ``torch.export.save`` and an
array of calibration inputs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils import qsv_utils
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

Inputs = tuple[torch.Tensor, ...]


def pt2e(module: torch.nn.Module, inputs: Inputs) -> bytes:
    """Quantize in torch, as in the converter's own guide: static, weights per channel."""
    scheme = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(module, scheme)
    for x in inputs:
        prepared(x)
    quantized = convert_pt2e(prepared, fold_quantize=False)
    return serialized(quantized, inputs[0], QuantConfig(pt2e_quantizer=scheme))


def ai_edge_quantizer(module: torch.nn.Module, inputs: Inputs) -> bytes:
    """Convert in float32, then quantize the file with the recipe for int8 weights and activations. Ranges are moving
    averages over the images, the default."""
    work = quantizer.Quantizer(serialized(module, inputs[0]), recipe.static_wi8_ai8())
    return bytes(work.quantize(work.calibrate(samples(inputs), num_threads=1)).quantized_model)


def ai_edge_quantizer_minmax(module: torch.nn.Module, inputs: Inputs) -> bytes:
    """The same, but with ranges that cover all values seen."""
    data, manager = serialized(module, inputs[0]), RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    calibrator = Calibrator(data, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    calibrator.calibrate(samples(inputs), manager)
    work = quantizer.Quantizer(data, recipe.static_wi8_ai8())
    return bytes(work.quantize(calibrator.get_model_qsvs()).quantized_model)


def samples(inputs: Inputs) -> dict[str, list[dict[str, np.ndarray]]]:
    return {"serving_default": [{"args_0": x.numpy()} for x in inputs]}


def serialized(module: torch.nn.Module, x: torch.Tensor, config: QuantConfig | None = None) -> bytes:
    return bytes(litert_torch.convert(module, (x,), quant_config=config).model_content())


QUANTIZERS: dict[str, Callable[[torch.nn.Module, Inputs], bytes]] = {
    "pt2e": pt2e,
    "ai-edge-quantizer": ai_edge_quantizer,
    "ai-edge-quantizer-minmax": ai_edge_quantizer_minmax,
}


def main() -> None:
    """Read a program and its inputs, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("quantizer", choices=QUANTIZERS)
    parser.add_argument("program", type=Path, help="program written by torch.export.save (.pt2)")
    parser.add_argument("inputs", type=Path, help="calibration inputs, float32 (images, ...) (.npy)")
    parser.add_argument("out", type=Path, help="file to write (.tflite)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    inputs = tuple(torch.from_numpy(x[None]) for x in np.load(given.inputs))
    with torch.inference_mode():
        data = QUANTIZERS[given.quantizer](torch.export.load(given.program).module(), inputs)
    given.out.write_bytes(data)


if __name__ == "__main__":
    main()
