# SPDX-License-Identifier: Apache-2.0
"""Averages whose width is chosen after training: power-function averages, and what is made of their snapshots."""
