# SPDX-License-Identifier: Apache-2.0
"""The optimizers, one file per family."""
