# SPDX-License-Identifier: Apache-2.0
"""What a drawing is made of, shared by all pipelines."""
