"""Train compact SqueezeNets, export them as int8 ONNX and TFLite, plan their SRAM, run and measure them.

>>> import firebox
>>> firebox.plan("model.int8.tflite").arena_bytes
>>> firebox.Session("model.int8.tflite").classify("cat.jpg")

These are the names that most programs need; ``firebox.runtime``, ``firebox.export`` and ``firebox.model_zoo`` have
more. Each name is imported on first use.
"""

from typing import TYPE_CHECKING

from .runtime.lazy import attach

if TYPE_CHECKING:
    from ._version import __version__
    from .export import fit_file
    from .model_zoo import create_model, export_network, list_models, load_network, train
    from .runtime import Ensemble, FireboxError, Session, evaluate, open_images, plan, profile
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "_version": ("__version__",),
            "export": ("fit_file",),
            "model_zoo": ("create_model", "export_network", "list_models", "load_network", "train"),
            "runtime": ("Ensemble", "FireboxError", "Session", "evaluate", "open_images", "plan", "profile"),
        },
    )

__all__ = [
    "Ensemble",
    "FireboxError",
    "Session",
    "__version__",
    "create_model",
    "evaluate",
    "export_network",
    "fit_file",
    "list_models",
    "load_network",
    "open_images",
    "plan",
    "profile",
    "train",
]
