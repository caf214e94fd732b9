# SPDX-License-Identifier: Apache-2.0
"""Networks of others in the form that our images ask for. Importing this makes their names known to timm."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import nn

__all__ = ["mobilenetv3_small_050_32px"]


@register_model
def mobilenetv3_small_050_32px(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's MobileNet-V3-small 0.5 with a stem of stride 1, so that 32 pixels end as 2x2 and not as one.

    It halves as often as StarNet and StarShift do at half resolution; parameters and state dict are timm's.
    """
    model = timm.create_model("mobilenetv3_small_050", pretrained, **kwargs)
    model.get_submodule("conv_stem").stride = (1, 1)
    return model
