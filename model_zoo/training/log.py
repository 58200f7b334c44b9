"""What is written down of every epoch of a training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LogRow:
    """One epoch: its last step and learning rate, mean loss, shares of right answers, and the time of its steps.

    The training accuracy is counted while learning, on augmented images (mixed ones by the class that has the larger
    share); the validation accuracy afterwards, and NaN where there was no validation.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    seconds: float
