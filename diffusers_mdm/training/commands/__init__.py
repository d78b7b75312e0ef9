# SPDX-License-Identifier: Apache-2.0
"""The training and evaluation commands: from the command line to a run."""
