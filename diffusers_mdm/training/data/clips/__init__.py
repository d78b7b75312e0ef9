# SPDX-License-Identifier: Apache-2.0
"""Clips: files and folders that nobody vouches for, the frames that are chosen of them, and their pixels."""
