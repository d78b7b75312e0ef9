# SPDX-License-Identifier: Apache-2.0
"""The program `diffusers-mdm`: one sub-command per module, which is imported only when it is called."""
