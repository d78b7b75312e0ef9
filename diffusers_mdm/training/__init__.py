# SPDX-License-Identifier: Apache-2.0
"""The implementation of the training commands. Importing `diffusers_mdm` does not import this package."""
