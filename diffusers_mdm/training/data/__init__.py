# SPDX-License-Identifier: Apache-2.0
"""From the files that a person has to the batches of a step."""
