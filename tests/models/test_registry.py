# SPDX-License-Identifier: Apache-2.0
"""Names: found by file, distinct from timm's, and helpful when wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

from starshift.errors import StarshiftError
from starshift.models import OptionError, create_model, is_model, list_models
from starshift.models._registry import get_variant, variants

OURS_BY_NAME = "import timm; print('\\n'.join(timm.list_models()))"


@pytest.fixture(scope="module")
def timm_alone() -> set[str]:
    """timm's names in a process that never imports starshift."""
    run = subprocess.run([sys.executable, "-c", OURS_BY_NAME], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_names_are_timms_only_where_the_network_is(timm_alone: set[str]) -> None:
    shared = {name for name in variants() if name in timm_alone}
    assert shared == {name for name, variant in variants().items() if variant.timm_args is not None}
    assert shared == {f"starnet_{size}" for size in ("s1", "s2", "s3", "s4", "s050", "s100", "s150")}
    assert not {variant.timm_name for variant in variants().values()} & timm_alone


def test_timm_keeps_its_own_starnet() -> None:
    assert type(timm.create_model("starnet_s050")).__module__ == "timm.models.starnet"
    assert type(create_model("starnet_s050")).__module__ == "starshift.models.starnet"


def test_list_is_filtered_and_in_natural_order() -> None:
    assert list_models("shiftresnet*") == ["shiftresnet20", "shiftresnet56", "shiftresnet110"]
    assert set(list_models()) == set(variants())


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(StarshiftError, match="'shiftresnet20'"):
        create_model("shiftresnet21")
    with pytest.raises(StarshiftError, match="'mobilenetv3_small_100'"):
        create_model("mobilenetv3_smal_100")
    assert is_model("shiftnet_a") and is_model("resnet18") and not is_model("shiftnet_z")


def test_timms_models_by_name() -> None:
    model = create_model("mobilenetv3_small_050", num_classes=4, in_chans=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    with pytest.raises(OptionError, match="nonsense"):
        create_model("mobilenetv3_small_050", nonsense=1)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("starnet_s050", {"act": "relu66"}, "relu6"),
        ("starnet_s050", {"mode": "summ"}, "sum"),
        ("starnet_s050", {"mode": ["star", "sum"]}, "4 stages"),
        ("starnet_s050", {"layout": "left"}, "before"),
        ("starnet_s050", {"placement": "last"}, "product"),
        ("starnet_s050", {"stem_stride": 3}, "1 or 2"),
        ("starnet_s050", {"init": "random"}, "official"),
        ("starshift_s", {"init": "random"}, "official"),
        ("starshift_s", {"space": "depthwise", "kernel_size": 4}, "odd"),
        ("starnet_s050", {"kernel_size": 4}, "odd"),
        ("starnet_s050", {"global_pool": ""}, "num_classes=0"),
        ("starnet_s050", {"num_classes": -1}, "num_classes"),
        ("demonet_d6_w192", {"mode": "product"}, "star, sum"),
        ("demonet_d6_w192", {"patch_size": 0}, "patch_size"),
        ("shiftresnet20", {"offsets": "interleave"}, "interleaved"),
        ("shiftresnet20", {"kernel_size": 2}, "odd"),
        ("shiftresnet20", {"expansion": 0}, "expansion"),
        ("shiftresnet20", {"relu": "none"}, "branch"),
        ("shiftnet_a", {"stem_chs": 64}, "add channels"),
        ("shiftnet_a", {"depths": (1, 2)}, "one entry"),
        ("resnet20", {"reduction_mode": "blocks"}, "block"),
    ],
)
def test_wrong_values_are_refused(name: str, options: dict, says: str) -> None:
    with pytest.raises(StarshiftError, match=says):
        create_model(name, **options)


def test_no_pretrained_weights_is_one_clear_error() -> None:
    with pytest.raises(StarshiftError, match="no pretrained weights for shiftresnet20"):
        create_model("shiftresnet20", pretrained=True)


def test_a_tag_does_not_hide_whose_the_model_is() -> None:
    assert get_variant("starnet_s1.in1k") is get_variant("starnet_s1") is not None
