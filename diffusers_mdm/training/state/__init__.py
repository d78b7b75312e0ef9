# SPDX-License-Identifier: Apache-2.0
"""What a run keeps, and what has to survive a crash."""
