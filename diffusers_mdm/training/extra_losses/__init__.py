# SPDX-License-Identifier: Apache-2.0
"""Losses that a recipe can add to that of the pyramid, each a part of its own."""
