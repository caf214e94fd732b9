# SPDX-License-Identifier: Apache-2.0
"""Using a trained network, wherever it runs: accuracy on labelled images, predictions for files; facts of a machine."""

from __future__ import annotations

from starshift.deploy import Predictor
from starshift.infer.evaluate import ClassScore, Evaluation, evaluate
from starshift.infer.info import info
from starshift.infer.load import load
from starshift.infer.predict import Prediction, predict

__all__ = ["ClassScore", "Evaluation", "Prediction", "Predictor", "evaluate", "info", "load", "predict"]
