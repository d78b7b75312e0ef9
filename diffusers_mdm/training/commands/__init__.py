# SPDX-License-Identifier: Apache-2.0
"""From what was typed to a run."""
