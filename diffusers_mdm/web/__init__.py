# SPDX-License-Identifier: Apache-2.0
"""The web demo: a page on which every level of a drawing can be watched (`diffusers-mdm demo`)."""

import os

# Read when gradio is imported: nothing about visitors or this server is reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
