"""Training of zoo networks, and its parts for other training loops: callbacks, data, optimizers and validation.

>>> from firebox.model_zoo.training import FreezeOut, LoopState, SaveSnapshots, make_optimizer

torch is imported when a name that needs it is first used.
"""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach
from ..extras import EXTRAS

if TYPE_CHECKING:
    from .averaging import average_checkpoints
    from .callbacks import (
        Callback,
        Callbacks,
        LearningRate,
        LoopState,
        SaveSnapshots,
        WeightAverage,
        snapshot_callbacks,
    )
    from .data import TrainingImages, load_images, open_training_images
    from .distributed import Resources
    from .freezeout import FreezeOut
    from .optimizer import Muon, make_optimizer
    from .result import TrainingResult
    from .trainer import quantized_config, resume, train, train_quantized
    from .validation import predict, top_k
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "averaging": ("average_checkpoints",),
            "callbacks": (
                "Callback",
                "Callbacks",
                "LearningRate",
                "LoopState",
                "SaveSnapshots",
                "WeightAverage",
                "snapshot_callbacks",
            ),
            "data": ("TrainingImages", "load_images", "open_training_images"),
            "distributed": ("Resources",),
            "freezeout": ("FreezeOut",),
            "optimizer": ("Muon", "make_optimizer"),
            "result": ("TrainingResult",),
            "trainer": ("quantized_config", "resume", "train", "train_quantized"),
            "validation": ("predict", "top_k"),
        },
        EXTRAS,
    )

__all__ = [
    "Callback",
    "Callbacks",
    "FreezeOut",
    "LearningRate",
    "LoopState",
    "Muon",
    "Resources",
    "SaveSnapshots",
    "TrainingImages",
    "TrainingResult",
    "WeightAverage",
    "average_checkpoints",
    "load_images",
    "make_optimizer",
    "open_training_images",
    "predict",
    "quantized_config",
    "resume",
    "snapshot_callbacks",
    "top_k",
    "train",
    "train_quantized",
]
