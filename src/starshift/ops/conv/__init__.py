# SPDX-License-Identifier: Apache-2.0
"""A dense convolution with bias and activation in inference (README.md). No operator: training is torch's."""
