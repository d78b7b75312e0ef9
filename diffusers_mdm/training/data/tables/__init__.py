# SPDX-License-Identifier: Apache-2.0
"""Data sets of records with numbers and columns: folders of parquet, picture or clip files, and those of the Hub."""
