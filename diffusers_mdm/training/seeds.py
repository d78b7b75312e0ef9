# SPDX-License-Identifier: Apache-2.0
"""Seeds: all random numbers of a run are derived from the run's seed and a few integers."""

import numpy as np


def derive_seed(*numbers: int) -> int:
    """Combine integers into one 63-bit seed, such that neighbouring (seed, step, rank) give unrelated random
    numbers.
    """
    words = [part for number in numbers for part in (number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF)]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
