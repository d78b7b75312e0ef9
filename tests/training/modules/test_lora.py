# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from diffusers_mdm.training.modules.lora import (
    ATTENTION_PROJECTIONS,
    add_lora,
    load_lora,
    save_lora,
)
from diffusers_mdm.training.recipe.recipe import LoraRecipe
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_unet


def lora_parameters(unet) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in unet.named_parameters() if ".lora_" in name]


def randomize(unet, seed: int = 0) -> None:
    """Random numbers in all the adapter's weights, as training would leave there."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(unet):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def weights_of(unet) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in unet.named_parameters()}


def test_a_new_adapter_changes_nothing_and_is_all_that_learns():
    pipe = make_pipeline()
    plain = draw(pipe)
    before = len(list(pipe.unet.parameters()))
    add_lora(pipe.unet, LoraRecipe(rank=2))
    assert torch.equal(draw(pipe), plain)
    trained = [name for name, parameter in pipe.unet.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(lora_parameters(pipe.unet)) > 0
    assert all(".lora_" in name for name in trained)
    assert len(list(pipe.unet.parameters())) == before + len(trained)


def test_it_goes_on_every_attention_projection_unless_told_otherwise():
    unet = make_unet()
    add_lora(unet, LoraRecipe(rank=2))
    carriers = {name.split(".lora_")[0] for name, _ in unet.named_parameters() if ".lora_" in name}
    expected = {
        name.replace(".base_layer", "")
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear)
        and ".lora_" not in name
        and name.replace(".base_layer", "").endswith(tuple(f".{end}" for end in ATTENTION_PROJECTIONS))
    }
    assert carriers == expected
    assert {carrier.rsplit(".", 1)[-1] for carrier in carriers} == {
        "to_q", "to_k", "to_v", "0", "add_k_proj", "add_v_proj",
    }  # fmt: skip


def test_a_model_without_text_is_adapted_where_it_can_be():
    unet = make_unet(cross_attention_dim=None, encoder_hid_dim=None)
    add_lora(unet, LoraRecipe(rank=2))
    assert lora_parameters(unet)
    assert not [name for name, _ in unet.named_parameters() if "add_k_proj" in name]


def test_saved_it_loads_into_a_pipeline_changes_the_image_and_leaves_no_trace(tmp_path):
    trained = make_pipeline()
    plain = draw(trained)
    add_lora(trained.unet, LoraRecipe(rank=4, alpha=6.5, target_modules=("to_q", "to_v", "conv1")))
    randomize(trained.unet)
    changed = draw(trained)
    assert not torch.allclose(changed, plain, atol=1e-3)
    file = save_lora(trained.unet, tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == [file.name]

    user = make_pipeline()
    user.load_lora_weights(tmp_path / "adapter")
    assert torch.equal(draw(user), changed)
    user.unload_lora_weights()
    assert torch.equal(draw(user), plain)


@pytest.mark.parametrize("has_adapter", [True, False], ids=["into-an-adapter", "into-the-plain-model"])
def test_loaded_for_training_it_is_bit_for_bit_what_was_saved(tmp_path, has_adapter):
    recipe = LoraRecipe(rank=2, alpha=3.0, dropout=0.1)
    saved, loaded = make_unet(), make_unet()
    add_lora(saved, recipe)
    randomize(saved)
    save_lora(saved, tmp_path)
    if has_adapter:
        add_lora(loaded, recipe)
    load_lora(loaded, tmp_path)
    expected, found = weights_of(saved), weights_of(loaded)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    trained = {name for name, parameter in saved.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trained
    settings, kept = saved.peft_config["default"], loaded.peft_config["default"]
    assert (kept.r, kept.lora_alpha, kept.lora_dropout) == (settings.r, settings.lora_alpha, settings.lora_dropout)


def test_a_whole_state_can_stand_in_for_a_sharded_model(tmp_path):
    unet = make_unet()
    add_lora(unet, LoraRecipe(rank=2))
    whole = {name: value + 1 for name, value in unet.state_dict().items()}
    save_lora(unet, tmp_path, whole)
    load_lora(unet, tmp_path)
    assert all(torch.equal(value, whole[name]) for name, value in unet.state_dict().items() if ".lora_" in name)


def test_adapters_stay_in_full_precision_on_a_half_precision_model():
    unet = make_unet()
    torch.nn.Module.to(unet, torch.bfloat16)
    add_lora(unet, LoraRecipe(rank=2))
    assert {parameter.dtype for parameter in lora_parameters(unet)} == {torch.float32}
    assert {parameter.dtype for parameter in unet.parameters() if not parameter.requires_grad} == {torch.bfloat16}


def test_targets_that_are_not_there_are_named_with_what_is():
    with pytest.raises(ValueError, match=r"called \['to_x'\].*add_k_proj.*conv1.*to_out\.0.*to_q"):
        add_lora(make_unet(), LoraRecipe(target_modules=("to_q", "to_x")))
    with pytest.raises(ValueError, match=r"called \['norm1'\]"):
        add_lora(make_unet(), LoraRecipe(target_modules=("norm1",)))
    with pytest.raises(ValueError, match="`target_modules` is empty"):
        LoraRecipe(target_modules=())


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    unet, other = make_unet(), make_unet()
    add_lora(unet, LoraRecipe(rank=2))
    save_lora(unet, tmp_path)
    add_lora(other, LoraRecipe(rank=4))
    with pytest.raises(ValueError, match=r"do not fit the model's adapter.*rank"):
        load_lora(other, tmp_path)
    with pytest.raises(ValueError, match="already"):
        add_lora(unet, LoraRecipe())
