# SPDX-License-Identifier: Apache-2.0
"""Commands that train, prepare data for training, or plan it."""
