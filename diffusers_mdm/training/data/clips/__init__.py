# SPDX-License-Identifier: Apache-2.0
"""Reading clips from untrusted files and folders: choosing frames and decoding them."""
