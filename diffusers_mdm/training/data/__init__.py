# SPDX-License-Identifier: Apache-2.0
"""Reading training data: from files to batches."""
