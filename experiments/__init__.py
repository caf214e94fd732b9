# SPDX-License-Identifier: Apache-2.0
"""The laboratory: one file a table or figure of a paper. ``python -m experiments list`` shows them.

An experiment is a file here without a leading underscore. Its docstring gives what the paper says, the command and the
cost, and it holds settings only: ``TITLE``, ``SOURCE``, ``SETTING`` (what differs from the paper), ``COST`` by budget,
``cells(budget)``, ``table(rows)``, ``claims(rows)`` and, where there is one, ``figure(rows)`` and ``READING``: what the
rows say, and the likely cause where that is not what the paper says. Networks are trained by
:func:`starshift.training.train`, as a user trains theirs.
"""
