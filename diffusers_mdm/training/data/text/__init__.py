# SPDX-License-Identifier: Apache-2.0
"""Captions: cleaned where they enter, and encoded beforehand where the text encoder is to stay out of memory."""
