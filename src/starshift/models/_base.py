# SPDX-License-Identifier: Apache-2.0
"""timm's surface, once for all families: features, head, intermediates, classifier, checkpointing, feature info."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from starshift.errors import StarshiftError
from starshift.layers import Foldable
from starshift.layers.activation import one_of
from starshift.layers.folding import Run, fuse_bn_linear_
from starshift.layers.prepared import can_chain, chain, run_prepared

Option = TypeVar("Option", str, int)
INITS = ("timm", "official")


class ImageModel(Foldable):
    """Stem, a sequence of stages, norm, pool, classifier; images (N, in_chans, H, W) to logits (N, num_classes).

    A family's class builds the parts and hands them to this constructor.

    Args:
        stem: before the stages.
        stages: each gives one intermediate; registered under ``levels_name``.
        norm: after the stages (before the pool, unless the family overrides ``forward_features``).
        widths: channels after each stage.
        reductions: pixels of the input per pixel after each stage, in each direction.
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the input.
        drop_rate: dropout before the classifier.
        global_pool: one of :attr:`pools`, timm's names.
        min_size: smallest side of an image in pixels.
    """

    levels_name: ClassVar[str] = "stages"
    first_conv: ClassVar[str] = "stem.0.conv"
    pools: ClassVar[tuple[str, ...]] = ("avg", "max", "avgmax", "catavgmax", "")
    """What ``global_pool`` may be; "" leaves the pool out."""
    feature_levels: ClassVar[int] = 4
    """How many of the last intermediates ``features_only`` gives unless ``out_indices`` says."""
    initial_only: ClassVar[frozenset[str]] = frozenset()
    """Options that choose initial weights and nothing else."""

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: list[nn.Module],
        norm: nn.Module,
        widths: list[int],
        reductions: list[int],
        num_classes: int,
        in_chans: int,
        drop_rate: float,
        global_pool: str,
        min_size: int,
    ) -> None:
        super().__init__()
        if num_classes < 0 or in_chans < 1:
            raise StarshiftError(f"a model needs num_classes >= 0 and in_chans >= 1, not {num_classes} and {in_chans}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.min_size = min_size
        self.grad_checkpointing = False
        self.folded = False
        self.num_features = widths[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": width, "reduction": reduction, "module": f"{self.levels_name}.{i}"}
            for i, (width, reduction) in enumerate(zip(widths, reductions, strict=True))
        ]
        self.stem = stem
        self.add_module(self.levels_name, nn.Sequential(*stages))
        self.norm = norm
        self.global_pool = self._pool(global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.head = self._classifier()

    @property
    def levels(self) -> nn.Sequential:
        """The stages, whatever the family calls them."""
        return self.get_submodule(self.levels_name)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to the last feature map (N, num_features, H', W').

        Raises:
            StarshiftError: x has the wrong number of dimensions or channels, or is smaller than ``min_size``.
        """
        x = self._prepare(x)
        y = run_prepared(self, x, (self.stem, self.levels)) if self.folded else None
        if y is None:
            y = self.stem(x)
            y = checkpoint_seq(self.levels, y) if self.grad_checkpointing and self.training else self.levels(y)
        return self._finish_map(y)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map to logits (N, num_classes), or with ``pre_logits`` to the classifier's input."""
        x = self._finish_pooled(self.global_pool(x))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features after chosen stages, and the last feature map.

        Args:
            x: (N, in_chans, H, W).
            indices: all stages if None, the last so many if an int, these if a list (negative counts from the end).
            norm: apply the final norm to the last stage's map.
            stop_early: compute no stage past the last one asked for.
            output_fmt: only ``NCHW``.
            intermediates_only: leave out the last feature map.

        Raises:
            StarshiftError: another ``output_fmt``, or an input that does not fit.
        """
        if output_fmt != "NCHW":
            raise StarshiftError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        x = self._prepare(x)
        levels = self.levels
        wanted, deepest = feature_take_indices(len(levels), indices)
        last = len(levels) - 1
        found: list[Tensor] = []
        x = self.stem(x)
        for i, level in enumerate(levels):
            if stop_early and i > deepest:
                return found if intermediates_only else (x, found)
            x = checkpoint_seq(level, x) if self._checkpoints(level) else level(x)
            if i in wanted:
                found.append(self._norm_map(x) if norm and i == last else x)
        return found if intermediates_only else (self._finish_map(x), found)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with fresh weights, and another pool if ``global_pool`` is given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self._pool(global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        reference = next(self.parameters())
        self.head = self._classifier().to(device=reference.device, dtype=reference.dtype).train(self.training)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediates do not need."""
        wanted, deepest = feature_take_indices(len(self.levels), indices)
        cut = deepest < len(self.levels) - 1
        if prune_norm or cut:
            self.norm = nn.Identity()
        setattr(self, self.levels_name, self.levels[: deepest + 1])
        if cut:
            self.num_features = self.feature_info[deepest]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "")
        return wanted

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep fewer activations in training and compute them again in backward."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's grouping of parameters by depth, for layer-wise learning rates."""
        fine = rf"^{self.levels_name}\.(\d+)\.(\d+)" if self.levels_name == "stages" else rf"^{self.levels_name}\.(\d+)"
        return {
            "stem": r"^stem",
            "blocks": [(rf"^{self.levels_name}\.(\d+)" if coarse else fine, None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that decay would spoil: displacements of learned shifts, which it would draw to zero."""
        return {name for name, _ in self.named_parameters() if name.endswith(".displacement")}

    def prepare(self) -> Run | None:
        """Stem and stages in one: what has changed since is then looked for once for all of them."""
        return chain(self.stem, self.levels)

    def fold(self) -> None:
        """A batch norm before the mean pool goes into the classifier."""
        self.folded = can_chain(self.stem, self.levels)
        if (
            self.global_pool.pool_type == "avg"
            and isinstance(self.head, nn.Linear)
            and fuse_bn_linear_(self.norm, self.head)
        ):
            self.norm = nn.Identity()

    @classmethod
    def convert_state_dict(cls, state: dict[str, Tensor], model: ImageModel) -> dict[str, Tensor]:
        """A published checkpoint's names and layout turned into ours; families with such checkpoints override it."""
        return state

    def _finish_map(self, x: Tensor) -> Tensor:
        """From the last stage to the feature map that ``forward_features`` returns."""
        return self._norm_map(x)

    def _finish_pooled(self, x: Tensor) -> Tensor:
        """From the pool to the classifier's input."""
        return x

    def _norm_map(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def _pool(self, name: str) -> SelectAdaptivePool2d:
        return SelectAdaptivePool2d(pool_type=one_of("global_pool", name, self.pools), flatten=bool(name))

    def _classifier(self) -> nn.Module:
        if self.num_classes <= 0:
            return nn.Identity()
        if self.global_pool.is_identity():
            raise StarshiftError('without a pool (global_pool="") there is no vector to classify: give num_classes=0')
        return nn.Linear(self.head_hidden_size, self.num_classes)

    def _checkpoints(self, level: nn.Module) -> bool:
        return self.grad_checkpointing and self.training and isinstance(level, nn.Sequential)

    def _prepare(self, x: Tensor) -> Tensor:
        """The input, checked."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise StarshiftError(f"expected images (N, {self.in_chans}, H, W), got {tuple(x.shape)}")
        if x.shape[2] < self.min_size or x.shape[3] < self.min_size:
            raise StarshiftError(
                f"images of {x.shape[2]}x{x.shape[3]} pixels are too small for this {type(self).__name__}: "
                f"it needs {self.min_size} in each direction. Give it larger ones, or take a model for small images"
            )
        return x


def truncated_normal_(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Draw weights of these kinds of layers from a normal of std 0.02 cut at 2; biases of linear layers are zero."""
    for module in model.modules():
        if isinstance(module, kinds) and not module.weight.is_meta:
            trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def draw_weights(model: nn.Module, init: str) -> None:
    """First weights of StarNet and its kin: ``timm`` draws convolutions and classifier as :func:`truncated_normal_`
    does, ``official`` the classifier alone.

    Raises:
        StarshiftError: another ``init``.
    """
    truncated_normal_(model, (nn.Linear, nn.Conv2d) if one_of("init", init, INITS) == "timm" else (nn.Linear,))


def one_each(name: str, option: Option | Sequence[Option], stages: int) -> list[Option]:
    """One value for each stage, from one for all or a list.

    Raises:
        StarshiftError: a list of another length.
    """
    found: list[Option] = [option] * stages if isinstance(option, (str, int)) else list(option)
    if len(found) != stages:
        raise StarshiftError(f"{name} has {len(found)} entries for {stages} stages")
    return found


def drop_path_rates(rate: float, depths: list[int]) -> list[list[float]]:
    """Stochastic depth that grows linearly from 0 at the first block to ``rate`` at the last, by stage."""
    total = sum(depths)
    rates = iter([rate * i / max(total - 1, 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
