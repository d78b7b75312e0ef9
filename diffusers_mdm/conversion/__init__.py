# SPDX-License-Identifier: Apache-2.0
"""Reading and writing checkpoints in the formats of other MDM code bases.

One module per foreign format (`apple_mdm` with its `apple_mdm_config`, `community_mdm`); renaming by tables, which
both share (`state_dict_table`); the reader for untrusted files (`untrusted_checkpoint` with `inert_pickle` and
`inert_objects`), and the search for the weights in them (`checkpoint_layouts`); the writer, which leaves either a
complete, verified folder or nothing (`write_pipeline`); and what the commands share (`command_line`,
`folder_command`).
"""
