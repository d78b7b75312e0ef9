# SPDX-License-Identifier: Apache-2.0
r"""Convert a model of this package back to a checkpoint of the published implementation (Apple's ml-mdm).

    python conversion/convert_diffusers_to_apple_mdm.py --model_path mdm-64 --output_path vis_model.pth

The same as `diffusers-mdm convert to-apple`.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import sys
from collections.abc import Sequence

from diffusers_mdm.cli.convert import to_apple


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return to_apple.run(f"python {sys.argv[0]}", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
