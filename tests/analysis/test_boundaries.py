# SPDX-License-Identifier: Apache-2.0
"""Classifiers on points of the plane, and their scores over a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from starshift.analysis import accuracy, decision_grid, fit_classifier, fit_network, score, two_moons
from starshift.errors import StarshiftError
from tests.tolerance import assert_close


def test_moons_are_drawn_apart_and_again() -> None:
    data, again = two_moons(3), two_moons(3)
    assert data.points.shape == (100, 2) and data.test_points.shape == (2000, 2) and data.points.dtype == np.float32
    assert np.array_equal(data.points, again.points) and np.array_equal(data.test_classes, again.test_classes)
    assert not np.array_equal(data.points, two_moons(4).points)
    assert not np.isin(data.points[:, 0], data.test_points[:, 0]).any()
    assert set(np.unique(data.classes)) == {0, 1}


@pytest.mark.parametrize("name", ["svm_rbf", "svm_poly"])
def test_svms_are_the_papers(name: str) -> None:
    data = two_moons(0)
    machine = fit_classifier(name, data)
    got = machine.get_params()
    wanted = {"svm_rbf": ("rbf", 4), "svm_poly": ("poly", "scale")}[name]
    assert (got["kernel"], got["gamma"]) == wanted
    assert name == "svm_rbf" or (got["degree"], got["coef0"]) == (4, 4)
    assert accuracy(machine, data.test_points, data.test_classes) == 100 * machine.score(
        data.test_points, data.test_classes
    )
    grid = decision_grid(machine, resolution=5)
    assert grid.score.shape == (5, 5)
    corner = np.array([[grid.x[4], grid.y[1]]], dtype=np.float32)
    assert grid.score[1, 4] == machine.decision_function(corner)[0]
    with pytest.raises(StarshiftError, match="no options"):
        fit_classifier(name, data, steps=3)


@pytest.mark.parametrize("mode", ["star", "sum"])
def test_networks_learn_the_moons_the_same_each_time(mode: str) -> None:
    data = two_moons(0, points=60, noise=0.1, test_points=300)
    before = torch.random.get_rng_state()
    small = {"steps": 80, "lr": 3e-3, "width": 16, "depth": 2}
    net = fit_classifier(mode, data, seed=1, **small)
    assert torch.equal(torch.random.get_rng_state(), before) and not net.training
    assert all(block.mode == mode for block in net.blocks)
    assert accuracy(net, data.test_points, data.test_classes) > 90
    again, other = fit_classifier(mode, data, seed=1, **small), fit_classifier(mode, data, seed=2, **small)
    assert np.array_equal(score(net, data.points), score(again, data.points))
    assert not np.array_equal(score(net, data.points), score(other, data.points))
    logits = net(torch.from_numpy(data.points))
    assert_close("score", torch.from_numpy(score(net, data.points)).float(), logits[:, 1] - logits[:, 0])


def test_what_is_no_classifier_is_refused() -> None:
    data = two_moons(0)
    with pytest.raises(StarshiftError, match="no network"):
        decision_grid("svm")
    with pytest.raises(StarshiftError, match="two classes"):
        decision_grid(fit_network(data.points, data.classes, steps=1, num_classes=3, width=4, depth=1))
    with pytest.raises(StarshiftError, match="at least 1 step"):
        fit_network(data.points, data.classes, steps=0)
    with pytest.raises(StarshiftError, match="Did you mean 'svm_rbf'"):
        fit_classifier("svm_rb", data)
