# SPDX-License-Identifier: Apache-2.0
"""How good pictures are: features of real pictures, drawings of captions, and scores that compare the two.

Importing `diffusers_mdm` does not import this package.
"""
