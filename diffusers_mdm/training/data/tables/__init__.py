# SPDX-License-Identifier: Apache-2.0
"""Data sets of numbered records with columns: folders of parquet, image or clip files, and data sets on the Hub."""
