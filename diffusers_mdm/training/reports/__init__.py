# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: progress, grids, curves, the model card."""
