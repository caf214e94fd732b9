# SPDX-License-Identifier: Apache-2.0
"""Training: from a data set and a recipe to a run folder.

>>> from starshift.training import train
>>> run = train("digits", "shiftresnet20", epochs=1, img_size=8, quiet=True)
"""

from __future__ import annotations

from starshift.training.config import TrainConfig, recipes, resolve
from starshift.training.fit import train
from starshift.training.folder import Run
from starshift.training.interrupts import TrainingInterrupted

__all__ = ["Run", "TrainConfig", "TrainingInterrupted", "recipes", "resolve", "train"]
