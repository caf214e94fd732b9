# SPDX-License-Identifier: Apache-2.0
"""Small, fast image networks built of two operators: the star (multiply two branches) and the shift (move channels).

>>> import starshift
>>> model = starshift.create_model("starnet_s1", num_classes=10)

Importing this package is cheap: PyTorch is loaded when the first name below is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "create_model": "models",
    "list_models": "models",
    "load_model": "models",
    "train": "training",
    "evaluate": "infer",
    "predict": "infer",
    "export": "deploy",
    "info": "infer",
    "accelerate": "acceleration",
    "decelerate": "acceleration",
    "StarshiftError": "errors",
}
_ALIASES = {"eval": "evaluate"}

__all__ = [
    "__version__",
    "accelerate",
    "create_model",
    "decelerate",
    "eval",
    "evaluate",
    "export",
    "info",
    "list_models",
    "load_model",
    "predict",
    "train",
]

if TYPE_CHECKING:
    from starshift.acceleration import accelerate, decelerate
    from starshift.deploy import export
    from starshift.infer.evaluate import evaluate
    from starshift.infer.info import info
    from starshift.infer.predict import predict
    from starshift.models import create_model, list_models, load_model
    from starshift.training import train

    eval = evaluate


def __getattr__(name: str) -> Any:
    name = _ALIASES.get(name, name)
    if name in _HOME:
        return getattr(import_module(f"starshift.{_HOME[name]}"), name)
    raise AttributeError(f"module 'starshift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_ALIASES])
