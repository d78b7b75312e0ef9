# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from diffusers_mdm.training.data.batch import Batch, replace_by_empty


def batch_of(lengths: list[int], empty_length: int | None = 1, width: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Batch(
        pixels=torch.zeros(len(lengths), 3, 2, 2, dtype=torch.uint8),
        captions=[f"caption {row}" for row in range(len(lengths))],
        positions=torch.arange(len(lengths)),
        micro_conditioning={"scale": torch.full((len(lengths),), 64.0)},
        prompt_embeds=torch.randn(len(lengths), longest, width, generator=generator) * mask[..., None],
        prompt_attention_mask=mask,
        empty_prompt_embeds=None if empty_length is None else torch.full((empty_length, width), 7.0),
    )


def test_captions_are_dropped_without_features():
    batch = Batch(torch.zeros(3, 3, 2, 2), ["a", "b", "c"], torch.arange(3))
    dropped = replace_by_empty(batch, torch.tensor([False, True, False]))
    assert dropped.captions == ["a", "", "c"]
    assert batch.captions == ["a", "b", "c"]
    assert dropped.pixels is batch.pixels


def test_dropped_rows_have_the_features_of_the_empty_caption():
    batch = batch_of([3, 2, 1])
    before = batch.prompt_embeds.clone()
    dropped = replace_by_empty(batch, torch.tensor([False, True, False]))
    assert dropped.captions == ["caption 0", "", "caption 2"]
    assert dropped.prompt_attention_mask.sum(1).tolist() == [3, 1, 1]
    assert dropped.prompt_embeds[1].tolist() == [[7.0] * 4, [0.0] * 4, [0.0] * 4]
    assert torch.equal(dropped.prompt_embeds[0], before[0])
    assert torch.equal(batch.prompt_embeds, before)


def test_features_are_as_long_as_the_longest_caption_that_is_left():
    shorter = replace_by_empty(batch_of([3, 2, 1]), torch.tensor([True, False, False]))
    assert shorter.prompt_embeds.shape == (3, 2, 4)
    assert shorter.prompt_attention_mask.tolist() == [[True, False], [True, True], [True, False]]
    longer = replace_by_empty(batch_of([1, 1], empty_length=3), torch.tensor([False, True]))
    assert longer.prompt_attention_mask.sum(1).tolist() == [1, 3]
    assert (longer.prompt_embeds[0, 1:] == 0).all()
    assert (longer.prompt_embeds[1] == 7).all()


def test_features_without_those_of_the_empty_caption_are_refused():
    with pytest.raises(ValueError, match="empty_prompt_embeds"):
        replace_by_empty(batch_of([2], empty_length=None), torch.tensor([True]))


def test_every_tensor_moves():
    batch = batch_of([2, 1]).to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert all(tensor.is_meta for tensor in [*tensors, batch.micro_conditioning["scale"]])
    assert {field.name for field in dataclasses.fields(batch)} == set(vars(batch))
    assert len(batch) == 2
