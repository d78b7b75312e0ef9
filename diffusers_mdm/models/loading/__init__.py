# SPDX-License-Identifier: Apache-2.0
"""Loading the weights of a model, and reading them from wherever they are."""
