# SPDX-License-Identifier: Apache-2.0
"""What `diffusers-mdm generate` does: its flags, the drawing, its memory, and the files that it writes."""
