# SPDX-License-Identifier: Apache-2.0
"""What travels inside an exported file, so that nothing beside it is needed to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from starshift import __version__
from starshift.deploy._predictor import TrainedOn
from starshift.errors import StarshiftError
from starshift.preprocessing import Preprocessing

KEY = "starshift"  # its presence marks a file as ours; its value is the layout's number
LAYOUT = "1"


@dataclass(frozen=True)
class Metadata:
    """Facts about an exported network; every value is stored as a string (lists and tables as JSON).

    Attributes:
        model: architecture name, as ``create_model`` takes it.
        classes: names of the outputs, in order.
        preprocessing: how an image becomes an input.
        model_args: keyword arguments of ``create_model``.
        trained_on: its data, as far as they are known.
        license: of the weights; the exporter's code is Apache-2.0.
        versions: of the packages that made the file.
        commit: of the starshift source tree, empty for an installed release.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``, as the target understands it.
        kept_float: layers that stayed in float in an ``int8`` file, by their names in the network.
        trained: False where the weights are random; files that do not say count as trained.
    """

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    model_args: Mapping[str, Any] = field(default_factory=dict)
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    license: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    precision: str = "fp32"
    kept_float: tuple[str, ...] = ()
    trained: bool = True

    def to_strings(self) -> dict[str, str]:
        """As flat strings, for formats whose metadata is a table of strings."""
        return {
            KEY: LAYOUT,
            "model": self.model,
            "model_args": json.dumps(dict(self.model_args), default=str),
            "labels": json.dumps(list(self.classes), ensure_ascii=False),
            "preprocessing": json.dumps(self.preprocessing.to_config()),
            "data": self.trained_on.data,
            "data_options": json.dumps(dict(self.trained_on.options)),
            "data_fingerprint": json.dumps(dict(self.trained_on.fingerprint)),
            "license": self.license,
            "versions": json.dumps(dict(self.versions)),
            "commit": self.commit,
            "precision": self.precision,
            "kept_float": json.dumps(list(self.kept_float)),
            "trained": json.dumps(self.trained),
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], *, path: Path) -> Metadata:
        """Read what :meth:`to_strings` wrote.

        Raises:
            StarshiftError: the file carries no such metadata, or it cannot be read.
        """
        if KEY not in strings:
            raise StarshiftError(
                f"{path} carries no labels and no preprocessing, so it was not written by starshift:"
                " make the file with 'starshift export RUN'"
            )
        try:
            return cls(
                model=strings["model"],
                classes=tuple(map(str, json.loads(strings["labels"]))),
                preprocessing=Preprocessing.from_config(json.loads(strings["preprocessing"])),
                model_args=json.loads(strings.get("model_args", "{}")),
                trained_on=TrainedOn(
                    strings.get("data", ""),
                    json.loads(strings.get("data_options", "{}")),
                    json.loads(strings.get("data_fingerprint", "{}")),
                ),
                license=strings.get("license", ""),
                versions=json.loads(strings.get("versions", "{}")),
                commit=strings.get("commit", ""),
                precision=strings.get("precision", "fp32"),
                kept_float=tuple(json.loads(strings.get("kept_float", "[]"))),
                trained=bool(json.loads(strings.get("trained", "true"))),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise StarshiftError(f"{path}: its metadata cannot be read ({error!r}); export it again") from error


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of starshift and of those ``packages`` that are installed, found without importing them."""
    versions = {"starshift": __version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
