# SPDX-License-Identifier: Apache-2.0
"""The state of a run, and saving it such that it survives a crash."""
