# SPDX-License-Identifier: Apache-2.0
"""Evaluation of generated images: features of real images, generation from captions, and scores that compare the two.

Importing `diffusers_mdm` does not import this package.
"""
