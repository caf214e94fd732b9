# SPDX-License-Identifier: Apache-2.0
"""Decision boundaries in the plane: 2-D DemoNets and support vector machines on two moons ("Rewrite the Stars", section
3).

The networks are trained by a small loop of their own, full batch, since the data are a hundred points and no images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from starshift.analysis._measure import evaluating, images_of
from starshift.errors import StarshiftError
from starshift.layers.activation import one_of
from starshift.models import create_model

Array = np.ndarray
NETWORKS = ("star", "sum")
SVMS: dict[str, dict[str, Any]] = {
    "svm_rbf": {"kernel": "rbf", "gamma": 4},
    "svm_poly": {"kernel": "poly", "degree": 4, "coef0": 4, "gamma": "scale"},
}
CLASSIFIERS = (*NETWORKS, *SVMS)


@dataclass(frozen=True)
class Moons:
    """Points (N, 2) and classes (N,) of 0 and 1, float32 and int64, to train on and, drawn apart, to test on."""

    points: Array
    classes: Array
    test_points: Array
    test_classes: Array


@dataclass(frozen=True)
class Grid:
    """A classifier's score over a rectangle.

    Attributes:
        x, y: (columns,) and (rows,) coordinates.
        score: (rows, columns), above 0 where class 1 is chosen: a network's difference of log-odds, an SVM's decision
            function. The boundary is its zero line.
    """

    x: Array
    y: Array
    score: Array


def two_moons(seed: int = 0, points: int = 100, noise: float = 0.4, test_points: int = 2000) -> Moons:
    """Two moons as the paper has them, 100 points with noise 0.4, and fresh points of the same law for the test."""
    from sklearn.datasets import make_moons

    state = np.random.RandomState(seed)
    (x, y), (test_x, test_y) = (make_moons(n, noise=noise, random_state=state) for n in (points, test_points))
    return Moons(x.astype(np.float32), y, test_x.astype(np.float32), test_y)


def fit_classifier(name: str, data: Moons, seed: int = 0, **options: Any) -> Any:
    """One of the paper's four classifiers, fitted.

    Args:
        name: ``star`` or ``sum``, a ``demonet_2d`` of that mode; ``svm_rbf`` (gamma 4) or ``svm_poly`` (degree 4, coef0
            4, gamma scale).
        data: from :func:`two_moons`.
        seed: of the network's weights.
        options: further ones of :func:`fit_network`.

    Returns:
        A network in eval mode, or scikit-learn's ``SVC``.

    Raises:
        StarshiftError: unknown name, or options for an SVM.
    """
    if one_of("classifier", name, CLASSIFIERS) in NETWORKS:
        return fit_network(data.points, data.classes, name, seed, **options)
    if options:
        raise StarshiftError(f"{name} is the paper's: it takes no options, not {', '.join(options)}")
    from sklearn.svm import SVC

    return SVC(**SVMS[name]).fit(data.points, data.classes)


def fit_network(
    points: Array,
    classes: Array,
    mode: str = "star",
    seed: int = 0,
    steps: int = 200,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    **model_args: Any,
) -> nn.Module:
    """Train a ``demonet_2d`` on points of the plane: AdamW on all of them at once, learning rate along a cosine to 0.

    The same seed gives the same network on one machine; the global random state stays as it is.

    Args:
        points: (N, 2). classes: (N,), 0 and 1.
        mode: ``star`` or ``sum``.
        seed: of the first weights.
        steps, lr, weight_decay: of AdamW.
        model_args: of :class:`starshift.models.demonet.DemoNet2d`: depth, width, act, ...

    Raises:
        StarshiftError: steps or points that are none, or an option the model does not take.
    """
    if steps < 1 or len(points) == 0:
        raise StarshiftError(f"training takes at least 1 step and 1 point, not {steps} and {len(points)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model("demonet_2d", mode=mode, **model_args).train()
        x = torch.as_tensor(points, dtype=torch.float32)
        y = torch.as_tensor(classes, dtype=torch.int64)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def score(classifier: Any, points: Array) -> Array:
    """The classifier's score at points (N, 2), above 0 for class 1: (N,) float64.

    Args:
        classifier: a network with two logits, anything with scikit-learn's ``decision_function``, or a function of
        points.

    Raises:
        StarshiftError: it is none of these, or gives more than one number a point.
    """
    found = np.asarray(_scorer(classifier)(points), dtype=np.float64)
    if found.shape != (len(points),):
        raise StarshiftError(f"a boundary needs a classifier of two classes: its scores are {found.shape}")
    return found


def decision_grid(
    classifier: Any,
    x: tuple[float, float] = (-2.0, 3.0),
    y: tuple[float, float] = (-1.75, 2.25),
    resolution: int = 200,
) -> Grid:
    """The classifier's score over a rectangle, ``resolution`` points in each direction; the defaults hold two moons.

    Example:
        >>> from starshift.analysis import decision_grid
        >>> decision_grid(lambda points: points[:, 0], x=(-1, 1), y=(0, 1), resolution=3).score.tolist()
        [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]
    """
    columns, rows = np.linspace(*x, resolution), np.linspace(*y, resolution)
    points = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2).astype(np.float32)
    return Grid(columns, rows, score(classifier, points).reshape(resolution, resolution))


def accuracy(classifier: Any, points: Array, classes: Array) -> float:
    """Percent of points (N, 2) whose class (N,), 0 or 1, the score's sign gives."""
    return 100 * float(((score(classifier, points) > 0) == (np.asarray(classes) == 1)).mean())


def _scorer(classifier: Any) -> Callable[[Array], Any]:
    if isinstance(classifier, nn.Module):
        return lambda points: _log_odds(classifier, points)
    if hasattr(classifier, "decision_function"):
        return classifier.decision_function
    if callable(classifier):
        return classifier
    raise StarshiftError(f"{type(classifier).__name__} is no network, scikit-learn classifier or function of points")


@torch.no_grad()
def _log_odds(model: nn.Module, points: Array) -> Array:
    with evaluating(model):
        logits = model(images_of(model, (torch.as_tensor(points, dtype=torch.float32),))).cpu()
    return (logits[:, 1] - logits[:, 0]).numpy() if logits.shape[1] == 2 else logits.numpy()
