# SPDX-License-Identifier: Apache-2.0
"""What a run costs, before it is started: the memory and the operations of every stage."""
