"""The only place that opens onnxruntime sessions, so that their outputs are correct on every processor.

On processors whose kernels saturate (``exactness/saturation.py``), affected layers are loaded with the same weights as
uint8, for which onnxruntime has exact kernels.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .errors import FormatError, MissingExtraError
from .processor import this_processor

AS_IN_THE_FILE = "as in the file"
_VNNI = ("avx_vnni", "avx512_vnni")


@dataclass(frozen=True)
class OpenedSession:
    """An onnxruntime session, the number of layers whose weights are uint8 instead of int8, and as ``doubt`` the other
    layers that may still saturate, in words (empty if none can)."""

    session: Any
    rewritten_layers: int = 0
    doubt: str = ""

    @property
    def weights(self) -> str:
        """The form of the weights, in words."""
        form = f"uint8 in {_layers(self.rewritten_layers)}" if self.rewritten_layers else AS_IN_THE_FILE
        return f"{form}; {self.doubt}" if self.doubt else form


def import_onnxruntime() -> Any:
    """The onnxruntime package. Raises ``MissingExtraError``."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error


def session_options(threads: int | None = None) -> Any:
    """Options for ``open_onnx``: only errors are logged; ``threads`` replaces the default of one per core."""
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def open_onnx(data: bytes, options: Any, exact: bool = True) -> OpenedSession:
    """Open a session on the CPU. Without ``exact`` the file is loaded unchanged, and kernels may saturate.

    Raises onnxruntime's own error for a file that it rejects.
    """
    rewritten, doubt = 0, ""
    if exact and kernels_saturate():
        from .exactness.saturation import exact_form

        try:
            form = exact_form(data)
            data, rewritten = form.data, form.rewritten
            doubt = f"{_layers(form.left)} may saturate" if form.left else ""
        except FormatError:
            # If onnxruntime cannot read the file either, it raises its own error below.
            doubt = "it is unknown which layers may saturate"
    # With its fallback, onnxruntime prints a failure on stdout and retries with the same provider.
    session = import_onnxruntime().InferenceSession(
        data, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    return OpenedSession(session, rewritten, doubt)


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


@cache
def kernels_saturate() -> bool:
    """True if onnxruntime's kernels for uint8 activations and int8 weights saturate on this processor.

    Only x86 processors without VNNI have such kernels. numpy detects AVX-512 VNNI but not AVX-VNNI, so without the
    former the kernels themselves are run, which takes a millisecond.
    """
    processor = this_processor()
    if not processor.is_x86:
        return False
    if processor.overridden:
        return "avx2" in processor.features and not any(name in processor.features for name in _VNNI)
    return "avx512_vnni" not in processor.features and _largest_products_saturate()


def _largest_products_saturate() -> bool:
    """Run a matrix product in onnxruntime whose sums exceed 16 bits, and compare the result."""
    from .formats.onnx_wire import matmul_model

    inner, outer, rows = 64, 16, 8
    data = matmul_model(np.full((inner, outer), 127, np.int8), rows)
    try:
        session = import_onnxruntime().InferenceSession(
            data, session_options(1), providers=["CPUExecutionProvider"], enable_fallback=0
        )
        sums = session.run(None, {"x": np.full((rows, inner), 255, np.uint8)})[0]
    except MissingExtraError:
        raise
    except Exception:
        # This build lacks the operator; the exact form is correct everywhere, only slower.
        return True
    return bool((sums != 127 * 255 * inner).any())
