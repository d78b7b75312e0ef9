# SPDX-License-Identifier: Apache-2.0
"""Reading and writing checkpoints in the formats of other MDM code bases.

One module per foreign format (`apple_mdm` with its `apple_mdm_config`, `community_mdm`); the renaming engine that both
share (`state_dict_table`); the reader for files nobody vouches for (`untrusted_checkpoint` over `inert_pickle` and
`inert_objects`) and what finds the weights in it (`checkpoint_layouts`); the writer that leaves either a complete,
verified folder or nothing (`write_pipeline`); and what the commands share (`command_line`,
`folder_command`).
"""
