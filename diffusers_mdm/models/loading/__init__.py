# SPDX-License-Identifier: Apache-2.0
"""Where the weights of a model come from, and where they lie."""
