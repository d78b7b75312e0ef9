# SPDX-License-Identifier: Apache-2.0
r"""Convert weights of the MDM community pipeline in diffusers' examples to a pipeline folder of this package.

    python conversion/convert_community_mdm_to_diffusers.py --model_path community-folder --output_dir mdm-64

The same as `diffusers-mdm convert community`.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import sys
from collections.abc import Sequence

from diffusers_mdm.cli.convert import community


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return community.run(f"python {sys.argv[0]}", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
