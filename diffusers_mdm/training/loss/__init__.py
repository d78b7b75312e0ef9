# SPDX-License-Identifier: Apache-2.0
"""The error that is made smaller, and how it is measured on held-out data."""
