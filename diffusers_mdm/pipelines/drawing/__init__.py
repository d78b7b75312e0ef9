# SPDX-License-Identifier: Apache-2.0
"""The parts of a drawing (one sampling run, from noise to images) that all pipelines share."""
