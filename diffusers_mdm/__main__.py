# SPDX-License-Identifier: Apache-2.0
"""`python -m diffusers_mdm`, which is the program `diffusers-mdm`; `accelerate launch -m diffusers_mdm` starts it in
several processes.
"""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
