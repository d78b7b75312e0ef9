# SPDX-License-Identifier: Apache-2.0
"""A process that draws when it is asked to, with the package of any checkout and any number of threads.

Only the package is imported, so that the process can also run versions that these benchmarks do not fit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROMPTS = ("strawberry, 3d render", "cat face, noto style", "rocket, twemoji style", "red apple, flat icon")


class DrawingProcess:
    """A process that draws with the code of a folder.

    Args:
        code: root of a checkout.
        settings: see `serve`.
        num_threads: threads of the process; None for as many as the environment says.
    """

    def __init__(self, code: Path, settings: Mapping[str, Any], num_threads: int | None = None) -> None:
        threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"code": str(code), **settings})],
            env={**os.environ, "PYTHONPATH": str(code), **threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def begin(self) -> None:
        """Begin to draw."""
        assert self.process.stdin is not None
        self.process.stdin.write("draw\n")
        self.process.stdin.flush()

    def end(self) -> tuple[float, list[float]]:
        """Wait for what was begun; return the seconds that it took, and all pixels."""
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process stopped with exit status {self.process.wait()}; see its error above.")
        return tuple(json.loads(answer))

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(settings: Mapping[str, Any]) -> None:
    """Draw for each line of the input, with whatever version of the package is imported.

    Args:
        settings: `code` (folder of the package), `model` (folder of the pipeline), `num_images`, `steps` and
            `guidance_scale`.
    """
    # What a pipeline prints is no answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch  # this file is also run by versions whose benchmarks do not fit it

    import diffusers_mdm

    if not Path(diffusers_mdm.__file__).is_relative_to(settings["code"]):
        raise RuntimeError(f"{diffusers_mdm.__file__} was imported, which is not in {settings['code']}.")
    pipeline = diffusers_mdm.MDMPipeline.from_pretrained(settings["model"])
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    number = settings["num_images"]
    for _ in sys.stdin:
        generators = [torch.Generator().manual_seed(seed) for seed in range(number)]
        start = clock()
        images = pipeline(
            [PROMPTS[index % len(PROMPTS)] for index in range(number)],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance_scale"],
            generator=generators,
            output_type="pt",
        ).images
        print(json.dumps([clock() - start, images.flatten().tolist()]), file=answers, flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
