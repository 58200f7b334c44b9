"""Sessions over the installed runtimes, ensembles of them, and their accuracy on labelled images."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .classifier import Classifier
    from .ensemble import Combine, Ensemble
    from .evaluation import Evaluation, evaluate
    from .installed import installed_backends
    from .session import Facts, Prediction, Session
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "installed": ("installed_backends",),
            "classifier": ("Classifier",),
            "ensemble": ("Combine", "Ensemble"),
            "evaluation": ("Evaluation", "evaluate"),
            "session": ("Facts", "Prediction", "Session"),
        },
    )

__all__ = [
    "Classifier",
    "Combine",
    "Ensemble",
    "Evaluation",
    "Facts",
    "Prediction",
    "Session",
    "evaluate",
    "installed_backends",
]
