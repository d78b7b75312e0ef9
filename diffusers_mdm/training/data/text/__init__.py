# SPDX-License-Identifier: Apache-2.0
"""Captions: cleaning them when they are read, and encoding them in advance to train without a text encoder in
memory.
"""
