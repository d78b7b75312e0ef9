# SPDX-License-Identifier: Apache-2.0
r"""Convert a checkpoint of the published MDM implementation (Apple's ml-mdm) to a diffusers folder.

    python conversion/convert_apple_mdm_to_diffusers.py --checkpoint_path vis_model.pth \
        --config_path cc12m_64x64.yaml --output_dir mdm-64 --text_encoder google/flan-t5-xl

The same as `diffusers-mdm convert apple`.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import sys
from collections.abc import Sequence

from diffusers_mdm.cli.convert import apple


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return apple.run(f"python {sys.argv[0]}", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
