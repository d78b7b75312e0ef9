# SPDX-License-Identifier: Apache-2.0
"""Samples that lie in memory, some of them broken."""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from diffusers_mdm.training.data.reading import Request
from diffusers_mdm.training.data.samples import Sample
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from tests.training.image_files import png


@dataclass
class MemorySource:
    """Samples by number: number n is a plain image whose green is 10 n, of class n, with the captions "n" and "n!";
    None is a sample that cannot be read.
    """

    samples: Sequence[Sample | None]
    reads: collections.Counter[int] = field(default_factory=collections.Counter)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, reference: int) -> str:
        return f"sample {reference}"

    def read(self, reference: int) -> Sample:
        self.reads[reference] += 1
        sample = self.samples[reference]
        if sample is None:
            raise UnusableSampleError("it is broken")
        return sample

    def substitutes(self, reference: int, request: Request) -> Iterable[int]:
        return ((reference + step) % len(self) for step in range(1, len(self)))


def memory_source(number: int, broken: Iterable[int] = ()) -> MemorySource:
    broken = set(broken)
    return MemorySource(
        [
            None if n in broken else Sample(png((0, 10 * n, 0), (8, 8)), [str(n), f"{n}!"], label=n)
            for n in range(number)
        ]
    )
