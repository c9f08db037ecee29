"""Placement and distribution of a run, by accelerate."""

import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    gather_object,
)
from torch import Tensor

from davae.evaluate.processes import Processes

PATIENCE = timedelta(days=1)
"""One process measures, or has more left to encode, while the others wait for it."""


def make_accelerator(device: str) -> Accelerator:
    """The accelerator of a recipe's `device`.

    Raises:
        ValueError: training would be distributed by something else than data parallelism.
    """
    # Batch-norm statistics of the discriminator stay local: two forwards precede one backward there.
    # torch 2.13 deprecates the argument, and its replacement would still synchronise them once.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    local = DistributedDataParallelKwargs(broadcast_buffers=False)
    # The recipe says precision and accumulation; what the environment says would be applied on top.
    accelerator = Accelerator(
        cpu=device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[local, InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(
            f"Training is distributed by data parallelism only; got {accelerator.distributed_type.value}. "
            f"Launch with 'accelerate launch --multi_gpu' or torchrun."
        )
    return accelerator


def processes_of(accelerator: Accelerator) -> Processes:
    """Its processes, to share a measurement."""
    return Processes(accelerator.process_index, accelerator.num_processes, gather_object)


def mean_over_processes(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Mean of a tensor over the processes."""
    if accelerator.num_processes == 1:
        return tensor
    mean: Tensor = accelerator.reduce(tensor, "mean")
    return mean
