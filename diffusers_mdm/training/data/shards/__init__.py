# SPDX-License-Identifier: Apache-2.0
"""Reading WebDataset shards: the contents of tar files, their order, and the meaning of their parts."""
