# SPDX-License-Identifier: Apache-2.0
"""Noise schedules and samplers."""

from .scheduling_matryoshka import MatryoshkaScheduler, MatryoshkaSchedulerOutput

__all__ = ["MatryoshkaScheduler", "MatryoshkaSchedulerOutput"]
