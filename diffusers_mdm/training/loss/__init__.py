# SPDX-License-Identifier: Apache-2.0
"""The training loss, and the validation loss on held-out data."""
