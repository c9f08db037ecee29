"""What of a training goes into a checkpoint: trained weights, averages, optimizers, and the task's own state."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from davae.core.finite import non_finite
from davae.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from davae.train.ema import ExponentialAverage, trained_parameters
from davae.train.task import Learner, Task

STEADIER = (
    "Lower the learning rate or set optim.max_grad_norm. These are other settings: pass --overwrite to start this "
    "stage anew with them, or give the run another name."
)
"""What to do about a training whose numbers run away."""
_TASK = "task"
"""Group of a checkpoint that holds the task's state. Those of a learner are NAME, NAME.ema and NAME.optimizer."""


@dataclass
class LearnerState:
    """A learner in training."""

    learner: Learner
    wrapped: nn.Module
    """Its network as tasks call it: wrapped where there are several processes."""
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer

    @classmethod
    def prepare(cls, learner: Learner, accelerator: Accelerator, compiled: bool = False) -> Self:
        """Place and wrap the network, begin its optimizer and its average.

        Raises:
            ValueError: no parameter requires a gradient.
        """
        parameters = [weight for _, weight in trained_parameters(learner.network)]
        if not parameters:
            raise ValueError("There is nothing to train: no parameter of the network requires a gradient.")
        learner.network.to(accelerator.device)
        optim = learner.optim
        optimizer = torch.optim.AdamW(parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
        if learner.ema_decay is not None:
            learner.average = ExponentialAverage(learner.network, learner.ema_decay, learner.ema_ramp)
        wrapped = accelerator.prepare_model(learner.network)
        if compiled:
            # Adaptive weights go back through a graph more than once, and would find its buffers used up.
            torch._functorch.config.donated_buffer = False
            wrapped = torch.compile(wrapped)
        return cls(learner, wrapped, parameters, optimizer)

    def groups(self, name: str) -> dict[str, dict[str, Tensor]]:
        """Groups of a checkpoint."""
        groups = {name: _network_state(self.learner.network)}
        if self.learner.average is not None:
            groups[f"{name}.ema"] = self.learner.average.shadow
        return groups | {f"{name}.optimizer": _pack(self.optimizer)}

    def load(self, name: str, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: its weights are another network's.
        """
        network, groups = self.learner.network, checkpoint.groups
        expected = _network_state(network).keys()
        # Checkpoints of earlier versions have every buffer; tables are the network's own.
        tables = {key for key, _ in network.named_buffers()} - expected
        stored = {key: tensor for key, tensor in groups[name].items() if key not in tables}
        if expected != stored.keys():
            raise CheckpointError(
                f"{checkpoint.path} holds other weights for the {name}: {sorted(expected ^ stored.keys())[:5]}. "
                f"Pass --overwrite to start this stage anew."
            )
        network.load_state_dict(stored, strict=False)
        if self.learner.average is not None:
            self.learner.average.load(groups[f"{name}.ema"])
        _unpack(self.optimizer, groups[f"{name}.optimizer"])


def save(
    store: CheckpointStore, step: int, task: Task, states: Mapping[str, LearnerState], accelerator: Accelerator
) -> None:
    """Write the checkpoint of `step` (steps finished), by the main process; the others wait for it.

    Raises:
        FloatingPointError: a weight, an average or the state of an optimizer is not finite, in every process.
        CheckpointError: it could not be written.
    """
    groups: dict[str, dict[str, Tensor]] = {_TASK: task.state} if task.state else {}
    for name, state in states.items():
        groups |= state.groups(name)
    _require_finite(step, groups)
    if accelerator.is_main_process:
        store.save(step, groups)
    accelerator.wait_for_everyone()


def _require_finite(step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    named = {f"{group}: {name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
    if bad := non_finite(named):
        raise FloatingPointError(
            f"Training stopped after step {step}: {len(bad)} of {len(named)} tensors are not finite, for example "
            f"{', '.join(bad[:3])}. They were not saved; what was saved before is intact. {STEADIER}"
        )


def resume(
    store: CheckpointStore | None, task: Task, states: Mapping[str, LearnerState], device: torch.device
) -> int:
    """Load the newest complete checkpoint, if there is one; returns the step to go on with.

    Raises:
        CheckpointError: it belongs to other settings or networks.
    """
    checkpoint = None if store is None else store.latest()
    if checkpoint is None:
        return 0
    for name, state in states.items():
        state.load(name, checkpoint)
    task.state.update({key: value.to(device) for key, value in checkpoint.groups.get(_TASK, {}).items()})
    return checkpoint.step


def _network_state(network: nn.Module) -> dict[str, Tensor]:
    """What training changes: trained parameters and running statistics. Other buffers are tables, and large ones."""
    changing = {name for name, _ in trained_parameters(network)}
    for path, module in network.named_modules():
        if isinstance(module, _NormBase):
            changing |= {f"{path}.{name}".lstrip(".") for name, _ in module.named_buffers()}
    return {name: tensor for name, tensor in network.state_dict().items() if name in changing}


def _pack(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """ "0.exp_avg" and so on: index of the parameter, name of the tensor."""
    return {
        f"{index}.{key}": value
        for index, tensors in optimizer.state_dict()["state"].items()
        for key, value in tensors.items()
    }


def _unpack(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in packed.items():
        index, key = name.split(".", 1)
        state[int(index)][key] = value
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
