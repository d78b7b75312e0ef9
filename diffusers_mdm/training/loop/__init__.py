# SPDX-License-Identifier: Apache-2.0
"""The training loop: start, stages, steps, and the end of a run."""
