# SPDX-License-Identifier: Apache-2.0
"""Reading and writing checkpoints in the formats of other MDM code bases.

One module per foreign format (`apple_mdm`, `community_mdm`), the reader for files nobody vouches for
(`untrusted_checkpoint`), the renaming engine that both formats share (`state_dict_table`), the writer that leaves
either a complete, verified folder or nothing (`write_pipeline`) and what the commands share (`folder_command`).
"""
