# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: what a tar file holds, in which order it is read, and what its parts mean."""
