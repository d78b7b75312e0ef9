# SPDX-License-Identifier: Apache-2.0
"""Recipes: the settings of a training run, checked before anything runs."""
