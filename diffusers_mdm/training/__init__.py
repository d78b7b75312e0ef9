# SPDX-License-Identifier: Apache-2.0
"""What the training commands call. Importing `diffusers_mdm` does not import this package."""
