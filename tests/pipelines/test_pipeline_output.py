# SPDX-License-Identifier: Apache-2.0
"""What pipelines return can be read by name, by key and by place, as all outputs of diffusers."""

import pytest
import torch

from diffusers_mdm import MDMPipelineOutput, MDMVideoPipelineOutput


@pytest.mark.parametrize(("output", "name"), [(MDMPipelineOutput, "images"), (MDMVideoPipelineOutput, "frames")])
def test_by_name_by_key_and_by_place(output, name):
    drawn = torch.zeros(1, 3, 8, 8)
    alone, both = output(drawn), output(drawn, [drawn])
    assert getattr(alone, name) is alone[name] is alone[0] is drawn
    assert len(alone.to_tuple()) == 1
    assert both.to_tuple()[1][0] is drawn
