# SPDX-License-Identifier: Apache-2.0
"""The trained modules, and the frozen ones beside them."""
