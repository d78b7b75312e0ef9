# SPDX-License-Identifier: Apache-2.0
"""What is trained, and what stays frozen beside it."""
