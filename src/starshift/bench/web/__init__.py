# SPDX-License-Identifier: Apache-2.0
"""Measuring on the visitor's own device: a page on the local network that runs exported models in the browser."""

from __future__ import annotations

from starshift.bench.web.server import Server, WebModel, web_models

__all__ = ["Server", "WebModel", "web_models"]
