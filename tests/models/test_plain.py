"""What other libraries do to a model's weights is found, and said, before it is copied."""

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import davae
from davae.models.plain import expect_plain, is_outline
from tiny_text import tiny_sd3, tiny_vae

CPU = torch.device("cpu")


class Params4bit(nn.Parameter):
    """As a library that quantises has it: a class of its own, packed into bytes."""


def cast_layerwise(model: Any) -> Any:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    return model


def quantise(model: Any) -> Any:
    model.proj_out.weight = Params4bit(model.proj_out.weight.detach().to(torch.uint8), requires_grad=False)
    return model


def declare_quantised(model: Any) -> Any:
    model.is_quantized = True
    return model


def offload_groups(model: Any) -> Any:
    model.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    return model


def compile_whole(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compile_a_block(model: Any) -> Any:
    model.transformer_blocks[0] = compile_whole(model.transformer_blocks[0])
    return model


def adapt(model: Any) -> Any:
    return inject_adapter_in_model(LoraConfig(target_modules=["to_q"]), model)


def lose_a_weight(model: Any) -> Any:
    model.proj_out.weight = nn.Parameter(model.proj_out.weight.to("meta"))
    return model


TREATMENTS = {
    cast_layerwise: "layerwise casting stores its weights in float32 and float8_e4m3fn; .* enable_layerwise_casting",
    quantise: r"quantised \(Params4bit\); .*Load it again without quantization_config",
    declare_quantised: r"quantised \(by its quantization_config\)",
    lambda model: model.to(torch.float8_e4m3fn): r"its weights are in torch.float8_e4m3fn; .*dtype=torch.bfloat16",
    lambda model: model.to("meta"): r"of its \d+ weights have no values .*Load it with its weights",
    lose_a_weight: r"1 of its \d+ weights have no values .*example proj_out.weight",
    lambda model: cpu_offload(model, execution_device=CPU): r"accelerate's hooks .*remove_all_hooks\(\)",
    lambda model: add_hook_to_module(model, CpuOffload(CPU)): "accelerate's hooks",
    offload_groups: "group offloading moves its weights",
    compile_whole: "torch.compile wraps it; .*_orig_mod",
    compile_a_block: "torch.compile wraps it",
    nn.DataParallel: "DataParallel wraps it; .*Give the model inside, its module",
    adapt: r"\(LoRA\) are attached to \d layers, for example .*to_q; .*fuse_lora\(\) and then unload_lora_weights",
}


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_what_was_done_is_said_with_what_to_do_first(treatment: Any) -> None:
    model = treatment(tiny_sd3())
    with pytest.raises(ValueError, match=f"Cannot widen this {type(model).__name__}: .*{TREATMENTS[treatment]}"):
        davae.widen(model, detail_channels=4)


def test_an_autoencoder_is_judged_alike() -> None:
    with pytest.raises(ValueError, match="Cannot upgrade this AutoencoderKL: layerwise casting"):
        davae.AutoencoderDA.from_base(cast_layerwise(tiny_vae()))


def test_what_was_undone_leaves_no_trace() -> None:
    offloaded: nn.Module = tiny_sd3()
    cpu_offload(offloaded, execution_device=CPU)
    remove_hook_from_module(offloaded, recurse=True)
    widened = davae.widen(offloaded, detail_channels=4)
    assert {weight.device for weight in widened.parameters()} == {CPU}
    compiled = compile_whole(tiny_sd3())
    expect_plain(compiled._orig_mod, "widen")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_plain_weights_pass(dtype: torch.dtype) -> None:
    expect_plain(tiny_sd3().to(dtype), "widen")
    expect_plain(adapt(tiny_sd3()), "load into", adapters=True)


def test_an_outline_gives_an_outline_where_one_is_asked_for() -> None:
    base = tiny_vae().to("meta")
    assert is_outline(base)
    assert is_outline(davae.AutoencoderDA.from_base(base))
    with pytest.raises(ValueError, match="no values"):
        expect_plain(base, "upgrade")
