# SPDX-License-Identifier: Apache-2.0
"""What a user sees of a run: progress, sample grids, curves, the model card."""
