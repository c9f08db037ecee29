"""How a text pipeline runs on this machine: precision, quantisation, offload, compilation, step cache.

All of it is diffusers' own. Quantisation to 8 bit floats needs nothing beside it; the others need a package.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

from davae.backbones.pair import Pair
from davae.core.precision import SHORT_DTYPES
from davae.sampling.step_cache import enable_step_cache, parse_step_cache

OFFLOADS = ("model", "sequential", "group")
QUANTIZATIONS = ("fp8", "int8", "nf4")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a pipeline runs.

    Args:
        dtype: of weights and computation, one of `SHORT_DTYPES`; None takes bf16 on an accelerator and fp32 on a CPU.
        quantize: "fp8" keeps the transformer's weights in 8 bit floats and computes in `dtype` (diffusers'
            layerwise casting); "int8" and "nf4" quantise the transformer and the largest text encoder (bitsandbytes).
        offload: what waits in the CPU's memory: whole parts ("model"), or layers, moved one after the other
            ("sequential", the slowest) or while others compute ("group").
        compile: torch.compile of the transformer.
        step_cache: "kind" or "kind=number", see `sampling.step_cache`.
    """

    dtype: str | None = None
    quantize: Literal["fp8", "int8", "nf4"] | None = None
    offload: Literal["model", "sequential", "group"] | None = None
    compile: bool = False
    step_cache: str | None = None

    def __post_init__(self) -> None:
        for name, given, allowed in (
            ("dtype", self.dtype, tuple(SHORT_DTYPES)),
            ("quantize", self.quantize, QUANTIZATIONS),
            ("offload", self.offload, OFFLOADS),
        ):
            if given is not None and given not in allowed:
                raise ValueError(f"There is no {name} {given!r}; allowed are {', '.join(allowed)}.")
        if self.step_cache is not None:
            parse_step_cache(self.step_cache)
        if self.quantize in ("int8", "nf4") and find_spec("bitsandbytes") is None:
            raise ValueError(
                f"Quantisation to {self.quantize} needs a package that is not installed. Install it with "
                f"'pip install bitsandbytes', or take --quantize fp8, which needs none."
            )

    def dtype_on(self, device: torch.device) -> str:
        """Name of the precision on this device."""
        return self.dtype or ("fp32" if device.type == "cpu" else "bf16")

    def require(self, device: torch.device) -> None:
        """Refuse what this device cannot do.

        Raises:
            ValueError: offload or bitsandbytes' quantisation without an accelerator.
        """
        if self.quantize in ("int8", "nf4") and device.type == "cpu":
            raise ValueError(f"Quantisation to {self.quantize} needs an accelerator; there is none. Take fp8.")
        if self.offload is not None and device.type == "cpu":
            raise ValueError("Offload moves weights between a CPU and an accelerator; there is none. Leave it out.")

    def load(self, pair: Pair, device: torch.device, **components: Any) -> Any:
        """The pipeline of a saved pair; `components` take the place of saved ones."""
        dtype = SHORT_DTYPES[self.dtype_on(device)]
        if self.quantize in ("int8", "nf4"):
            encoders = [
                name for name in pair.text_parts if name.startswith("text_encoder") and name not in components
            ]
            quantized = ["transformer", *encoders[-1:]]  # the last encoder is the largest
            components = {**components, "quantization_config": self._bitsandbytes(quantized, dtype)}
        return pair.load(dtype, **components)

    def start(self, pipe: Any, device: torch.device) -> Any:
        """Put a loaded pipeline in its place, ready to draw."""
        if self.quantize == "fp8":
            pipe.transformer.enable_layerwise_casting(
                storage_dtype=torch.float8_e4m3fn, compute_dtype=SHORT_DTYPES[self.dtype_on(device)]
            )
        self._place(pipe, device)
        if self.step_cache is not None:
            enable_step_cache(pipe, *parse_step_cache(self.step_cache))
        if self.compile:
            pipe.transformer.compile()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _place(self, pipe: Any, device: torch.device) -> None:
        if self.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif self.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        elif self.offload == "group":
            pipe.enable_group_offload(
                onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda"
            )
        else:
            pipe.to(device)

    def _bitsandbytes(self, parts: list[str], dtype: torch.dtype) -> PipelineQuantizationConfig:
        arguments: dict[str, Any]
        backend, arguments = "bitsandbytes_8bit", {"load_in_8bit": True}
        if self.quantize == "nf4":
            backend = "bitsandbytes_4bit"
            arguments = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return PipelineQuantizationConfig(quant_backend=backend, quant_kwargs=arguments, components_to_quantize=parts)
