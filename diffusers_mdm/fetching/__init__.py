# SPDX-License-Identifier: Apache-2.0
"""Downloading the published checkpoints from their publisher or a mirror, and describing where they come from."""
