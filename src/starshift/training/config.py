# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run: one typed, frozen value with timm's option names, read from and written to YAML."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from starshift.errors import StarshiftError, nearest

RECIPES = Path(__file__).parent / "recipes"
CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "sched": ("cosine", "onecycle", "multistep", "step", "poly", "tanh", "constant"),
    "lr_base_scale": ("", "linear", "sqrt"),
    "clip_mode": ("norm", "value"),
    "mixup_mode": ("batch", "pair", "elem"),
    "crop_padding_mode": ("constant", "edge", "reflect", "symmetric"),
    "remode": ("const", "rand", "pixel"),
    "penalty": ("", "participation", "cosine", "diagonal", "redundancy", "displacement"),
}
_TAG = "name the weights by the model's tag, as in --model resnet18.a1_in1k --pretrained"
NOT_OF_MODEL = {
    "pretrained": "take --pretrained, which starts from the published weights",
    "checkpoint_path": "take --checkpoint, which starts from weights of your own",
    "num_classes": "the classes are those of the data",
    "features_only": "it makes a network without a classifier",
    "pretrained_cfg": _TAG,
    "pretrained_cfg_overlay": _TAG,
    "pretrained_model_args": _TAG,
}
"""What create_model takes but ``model_args`` must not hold, with what to do in its place."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one run. Names and meanings are those of timm's ``train.py`` unless a comment says otherwise.

    Raises:
        StarshiftError: a value out of range or not among the choices, with the setting's name.
    """

    # Data
    data: str = ""  # "digits", a folder, or timm's "torch/...", "hfds/...", "wds/..."
    data_dir: str | None = None
    download: bool = False
    val_fraction: float = 0.2  # held out, by class, where the data have no split of their own
    # Model
    recipe: str = ""  # the recipe these settings started from
    model: str = ""
    model_args: dict[str, Any] = field(default_factory=dict)  # further arguments of create_model
    checkpoint: str | None = (
        None  # first weights, for fine-tuning: a file, a run folder, a Hub id; head made anew if it does not fit
    )
    pretrained: bool = False  # first weights, for fine-tuning: those published for the model
    drop: float | None = None  # None: the model's own default
    drop_path: float | None = None
    # Image; None: the data's native size if they have one, and else what the model was made for
    img_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    # Augmentation
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int = 0  # above 0: pad by this many pixels and crop at random (CIFAR); wants scale null
    crop_padding_mode: str = "constant"  # torchvision's: constant, edge, reflect, symmetric
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    aa: str = ""  # timm's auto-augment strings
    train_interpolation: str = "random"
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    aug_repeats: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"
    mixup_off_epoch: int = 0
    smoothing: float = 0.1
    bce_loss: bool = False
    penalty: str = ""  # added to the loss: of starshift.layers, coefficient_penalty's kinds or displacement_penalty
    penalty_weight: float = 0.01
    # Optimisation. Images an update (the global batch) = batch_size x grad_accum_steps x devices. lr is per update, as
    # it stands; None: lr_base x (global batch / lr_base_size), or x the root of that share (lr_base_scale: sqrt, which
    # is the default for adaptive optimisers).
    epochs: int = 100
    batch_size: int = 128
    grad_accum_steps: int = 1
    opt: str = "adamw"
    lr: float | None = None
    lr_base: float = 1e-3
    lr_base_size: int = 256
    lr_base_scale: str = ""
    momentum: float = 0.9
    weight_decay: float = 0.05
    filter_bias_and_bn: bool = True  # no weight decay on biases and norms
    layer_decay: float | None = None
    clip_grad: float | None = None
    clip_mode: str = "norm"
    # Learning rate over time, set before every update
    sched: str = "cosine"
    warmup_epochs: float = 5
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    pct_start: float = 0.25  # onecycle: share of all updates spent rising
    decay_milestones: tuple[int, ...] = (30, 60)  # multistep
    decay_epochs: float = 30  # step
    decay_rate: float = 0.1  # multistep, step; the power of poly
    # Averaged weights, which are then the ones validated and kept
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False
    # Machine
    precision: str = "fp32"
    devices: str = "auto"  # auto (one GPU, or the CPU), cpu, cuda, mps, or a number of GPUs; cpu:2 runs two processes
    workers: int | None = None  # None: chosen by data and machine
    channels_last: bool = True
    kernels: bool = True  # the library's own; False: plain PyTorch alone
    seed: int = 42
    checkpoint_minutes: float = 10.0  # within an epoch, last.ckpt is written after so long; 0: only at its end

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                spelled = ", ".join(choice or repr(choice) for choice in choices)
                raise StarshiftError(f"{name} is one of {spelled}; not {value!r}.{nearest(str(value), choices)}")
        above_zero = (
            "epochs",
            "batch_size",
            "grad_accum_steps",
            "img_size",
            "lr",
            "lr_base",
            "lr_base_size",
            "clip_grad",
            "layer_decay",
            "decay_epochs",
            "decay_rate",
        )
        for name in above_zero:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise StarshiftError(f"{name} must be above zero, not {getattr(self, name)}")
        not_negative = (
            "warmup_epochs",
            "warmup_lr",
            "min_lr",
            "weight_decay",
            "mixup",
            "cutmix",
            "workers",
            "aug_repeats",
            "crop_padding",
            "penalty_weight",
            "seed",
            "checkpoint_minutes",
        )
        for name in not_negative:
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise StarshiftError(f"{name} must not be negative, not {getattr(self, name)}")
        shares = (
            "drop",
            "drop_path",
            "hflip",
            "vflip",
            "reprob",
            "mixup_prob",
            "mixup_switch_prob",
            "smoothing",
            "val_fraction",
            "model_ema_decay",
            "momentum",
            "pct_start",
        )
        for name in shares:
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise StarshiftError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if (self.mixup > 0 or self.cutmix > 0) and self.batch_size % 2:
            raise StarshiftError(f"mixup and cutmix pair images: batch_size must be even, not {self.batch_size}")
        if self.pretrained and self.checkpoint is not None:
            raise StarshiftError("pretrained and checkpoint both name the first weights: give one of them")
        for name in self.model_args:
            if name in NOT_OF_MODEL:
                raise StarshiftError(f"model_args.{name} cannot be set: {NOT_OF_MODEL[name]}")

    def to_yaml(self) -> str:
        """Every setting, in the order above; ``resolve(path)`` reads it back to an equal value."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


_TYPES = get_type_hints(TrainConfig)


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def default_recipe(settings: dict[str, Any]) -> str:
    """The recipe to start from where none is named: by whether the network starts from weights."""
    return "finetune" if settings.get("checkpoint") or settings.get("pretrained") else "quick"


def resolve(recipe: str | Path | None = None, settings: dict[str, Any] | None = None) -> TrainConfig:
    """Settings from a recipe (a name, or the path of a YAML file), overridden by ``settings``.

    A key of ``settings`` may reach into ``model_args`` by a dot (``model_args.expansion``). A YAML file may itself name
    the recipe it starts from by its key ``recipe``.

    Raises:
        StarshiftError: an unknown recipe or key (with the nearest right one), or a value of the wrong type.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        values = _read_recipe(recipe)
    for key, value in (settings or {}).items():
        name, _, inner = key.partition(".")
        if inner and name == "model_args":
            values["model_args"] = {**values.get("model_args", {}), inner: value}
        else:
            values[key] = value
    return TrainConfig(**{name: _checked(name, value) for name, value in values.items()})


def override(config: TrainConfig, **settings: Any) -> TrainConfig:
    """A copy with some settings replaced, checked as in :func:`resolve`."""
    return replace(config, **{name: _checked(name, value) for name, value in settings.items()})


def parse_assignments(pairs: list[str]) -> dict[str, Any]:
    """``["lr=0.1", "scale=[0.5, 1]"]`` to a dictionary; values are read as YAML.

    Raises:
        StarshiftError: no ``key=value``, a key that is no setting (with the nearest right one), or no YAML.
    """
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise StarshiftError(f"--set takes key=value, not {pair!r}")
        key = key.strip().replace("-", "_")
        if key in ("out", "resume", "config"):
            raise StarshiftError(f"--set {pair}: {key} is no setting but an option: --{key} {value}")
        _check_name(key.partition(".")[0])
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise StarshiftError(f"--set {pair}: the value is not YAML") from error
    return found


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    path = RECIPES / f"{recipe}.yaml"
    own = not path.is_file() or str(recipe).endswith((".yaml", ".yml"))
    if own:
        path = Path(recipe)
    if path.is_dir() and (path / "config.yaml").is_file():
        path = path / "config.yaml"
    if not path.is_file():
        there_are = ", ".join(recipes())
        hint = nearest(str(recipe), recipes())
        raise StarshiftError(f"no recipe {str(recipe)!r} (recipes: {there_are}; or a YAML file).{hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StarshiftError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise StarshiftError(f"{path} must hold 'key: value' lines")
    try:
        for name, value in values.items():
            _checked(name, value)
    except StarshiftError as error:
        raise StarshiftError(f"{path}: {error}") from None
    if not own:
        return {"recipe": str(recipe), **values}
    base = values.get("recipe")
    return {**(_read_recipe(base) if base in recipes() else {}), **values}


def _check_name(name: str) -> None:
    if name not in _TYPES:
        raise StarshiftError(f"unknown setting {name!r}.{nearest(name, _TYPES)}")


def _checked(name: str, value: Any) -> Any:
    _check_name(name)
    options = get_args(_TYPES[name]) if get_origin(_TYPES[name]) in (Union, UnionType) else (_TYPES[name],)
    for option in options:
        ok, converted = _convert(value, option)
        if ok:
            return converted
    raise StarshiftError(f"{name} takes {' or '.join(_spell(option) for option in options)}, not {value!r}")


def _convert(value: Any, option: Any) -> tuple[bool, Any]:
    """Whether ``value`` is, or plainly means, a value of type ``option``; and that value."""
    if option is type(None):
        return value is None, None
    if option is bool or isinstance(value, bool):
        return option is bool and isinstance(value, bool), value
    if option is str:
        return isinstance(value, (str, int, Path)), str(value)
    if option is float:
        try:  # YAML reads 1e-3 as a string
            return isinstance(value, (int, float, str)), float(value)
        except (TypeError, ValueError):
            return False, value
    if get_origin(option) is tuple:
        kinds = get_args(option)
        if not isinstance(value, (list, tuple)) or (Ellipsis not in kinds and len(kinds) != len(value)):
            return False, value
        pairs = [_convert(v, kinds[0]) for v in value]
        return all(ok for ok, _ in pairs), tuple(v for _, v in pairs)
    plain = get_origin(option) or option
    return isinstance(value, plain), dict(value) if isinstance(value, dict) else value


def _spell(option: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if get_origin(option) is tuple:
        return "a list of numbers" if Ellipsis in get_args(option) else f"a list of {len(get_args(option))} numbers"
    return names.get(option, "a mapping")
