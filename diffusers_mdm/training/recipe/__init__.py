# SPDX-License-Identifier: Apache-2.0
"""What a recipe says, checked before anything runs."""
