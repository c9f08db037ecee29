"""What `davae doctor` counts: tokens, memory and cost of a run, from shapes alone."""

from dataclasses import asdict

import torch

from davae.evaluate.cost import (
    ASSUMPTIONS,
    UTILISATION,
    Flops,
    Memory,
    count_flops,
    count_parameters,
    estimate_memory,
    hours,
    image_flops,
    readable,
)
from davae.evaluate.gpus import GPUS, Gpu, gpu_like, named_gpu
from davae.stages.doctor.case import Case, Finding
from davae.stages.doctor.outline import Training

_COMFORTABLE = 0.9
"""Share of a device's memory above which an estimate is too close."""
_GIB = 2**30


def check_tokens(case: Case) -> list[Finding]:
    """Tokens of the small image, the upgraded one, and the large one without the upgrade."""
    outline = case.outline
    size, small = outline.image_size, outline.image_size // outline.scale
    if size % outline.unit:
        advice = f"Use {max(size // outline.unit, 1) * outline.unit}."
        return [Finding("failed", f"image_size {size} is not a multiple of {outline.unit}.", advice)]
    values = {"base": outline.tokens(small, outline.compression)}
    said = f"{outline.name}: {values['base']:,} at {small} px"
    if outline.scale > 1:
        values["upgraded"] = outline.tokens(size, outline.compression * outline.scale)
        values["native"] = outline.tokens(size, outline.compression)
        said += f"; {values['upgraded']:,} at {size} px, and {values['native']:,} without the upgrade"
    findings = [Finding("ok", f"{said}.", values=values)]
    if outline.assumed:
        findings.append(Finding("warning", f"Assumed from here on: {'; '.join(outline.assumed)}."))
    return findings


def check_memory(case: Case) -> list[Finding]:
    """What each training needs, against the device."""
    return [_memory(case, training) for training in case.outline.trainings]


def check_cost(case: Case) -> list[Finding]:
    """Parameters, FLOPs a step, and hours."""
    findings, counted = [], dict[tuple[int, bool], Flops]()
    for training in case.outline.trainings:
        key = id(training.transformer), training.config.gradient_checkpointing
        if key not in counted:
            counted[key] = count_flops(training.prepared(), training.workload)
        findings.append(_training(case, training, counted[key]))
    sample = case.run.recipe.sample
    if sample is not None:
        drawn = image_flops(list(counted.values())[-1], sample.steps, sample.guidance_scale != 1)
        said = f"an image of {sample.steps} steps: {readable(drawn, 'FLOP')} in the transformer."
        findings.append(Finding("ok", said, values={"image_flops": drawn}))
    return findings


def assumptions() -> list[str]:
    """What the estimates rest on, for people."""
    return [f"{name}: {text}" for name, text in ASSUMPTIONS.items()]


def _memory(case: Case, training: Training) -> Finding:
    config = training.config
    micro = max(config.batch_size // (config.accumulation * case.run.accelerator.num_processes), 1)
    averaged = config.ema_decay is not None
    memory = estimate_memory(training.prepared(), training.workload, micro, config.precision, averaged)
    name, limit = _memory_of(case)
    values = {**asdict(memory), "total": memory.total, "micro_batch": micro, "device": name, "limit": limit}
    said = f"{training.section}: about {_gib(memory.total)} for {micro} images at once: {_split(memory)}"
    if limit is None:
        fitting = [gpu for gpu in GPUS.values() if gpu.computes(config.precision) and _holds(gpu.memory, memory)]
        fits = f"the smallest GPU for that is {fitting[0].name}" if fitting else "no GPU of the table holds that"
        return Finding("ok", f"{said}; {fits}.", "" if fitting else _smaller(training, micro), values)
    said = f"{said}; {name} has {_gib(limit)}."
    if memory.total > limit:
        return Finding("failed", said, _smaller(training, micro), values)
    if not _holds(limit, memory):
        return Finding("warning", f"{said} That is close.", _smaller(training, micro), values)
    return Finding("ok", said, values=values)


def _training(case: Case, training: Training, flops: Flops) -> Finding:
    config, parameters = training.config, count_parameters(training.transformer)
    step = flops.total * config.batch_size
    adapters = f" ({_count(parameters.adapters)} LoRA)" if parameters.adapters else ""
    trained = f"{_count(parameters.trained)} of {_count(parameters.total)} parameters trained{adapters}"
    said = f"{training.section}: {trained}; {readable(step, 'FLOP')} a step of {config.batch_size} images"
    gpus = [gpu for gpu in _gpus(case) if gpu.computes(config.precision)]
    spent = {gpu.name: hours(step * config.steps, gpu, config.precision) for gpu in gpus}
    values = {
        **{f"{name}_parameters": count for name, count in asdict(parameters).items()},
        **{f"{name}_flops_image": count for name, count in asdict(flops).items()},
        **{"step_flops": step, "steps": config.steps, "utilisation": UTILISATION, "hours": spent},
    }
    if not spent:
        return Finding("warning", f"{said}; no rate of this device in {config.precision} is known.", values=values)
    taken = ", ".join(f"{_duration(time)} on one {name}" for name, time in spent.items())
    return Finding("ok", f"{said}; {config.steps:,} steps: {taken}.", values=values)


def _duration(spent: float) -> str:
    """Hours for people."""
    if spent < 1 / 60:
        return f"{spent * 3600:.2g} s"
    return f"{spent * 60:.0f} min" if spent < 1 else f"{spent:,.0f} h" if spent >= 10 else f"{spent:.1f} h"


def _gpus(case: Case) -> list[Gpu]:
    """The device that is meant, or at hand, or a few to compare."""
    if case.gpu is not None:
        return [named_gpu(case.gpu)]
    if case.device.type == "cuda":
        known = gpu_like(torch.cuda.get_device_properties(case.device).name)
        return [] if known is None else [known]
    return [GPUS[name] for name in ("RTX 4090", "A100", "H100")]


def _memory_of(case: Case) -> tuple[str | None, int | None]:
    """(name, bytes) of the device that is meant or at hand."""
    if case.gpu is not None:
        gpu = named_gpu(case.gpu)
        return gpu.name, gpu.memory
    if case.device.type == "cuda":
        found = torch.cuda.get_device_properties(case.device)
        return found.name, found.total_memory
    return None, None


def _smaller(training: Training, micro: int) -> str:
    config, section, advice = training.config, training.section, []
    if not config.gradient_checkpointing:
        advice.append(f"set {section}.gradient_checkpointing: true")
    if micro > 1:
        advice.append(f"raise {section}.accumulation above {config.accumulation}")
    if config.lora is None:
        advice.append(f"set {section}.lora")
    elif config.lora.frozen_precision == "fp32" and config.precision == "bf16":
        advice.append("set finetune.lora.frozen_precision: bf16")
    said = "; or ".join(advice) or "take a larger device"
    return f"{said[0].upper()}{said[1:]}."


def _holds(limit: int, memory: Memory) -> bool:
    return memory.total <= _COMFORTABLE * limit


def _split(memory: Memory) -> str:
    parts = [f"weights {_gib(size)} {name}" for name, size in memory.weights.items()]
    others = {
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "average": memory.average,
        "activations": memory.activations,
    }
    return ", ".join([*parts, *(f"{name} {_gib(size)}" for name, size in others.items() if size)])


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"
