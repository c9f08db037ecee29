"""What `davae doctor` counts: tokens, memory and cost of every stage, from shapes alone."""

from collections.abc import Iterator
from dataclasses import asdict

import torch

from davae.backbones.settings import LoraSettings
from davae.evaluate.cost import ASSUMPTIONS, UTILISATION, Cost, gib, readable
from davae.evaluate.gpus import GPUS, Gpu, gpu_like, named_gpu
from davae.recipe import FinetuneConfig
from davae.tools.doctor.examination import Examination
from davae.tools.doctor.finding import Finding
from davae.tools.doctor.trainings import StageCost
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.objective import ReconstructionConfig

_COMFORTABLE = 0.9
"""Share of a device's memory above which an estimate is too close."""


def check_tokens(examination: Examination) -> list[Finding]:
    """Tokens of the small image, the upgraded one, and the large one without the upgrade."""
    outline = examination.outline
    recipe = outline.run.recipe
    name = outline.public or (recipe.pair if recipe.pretrain is None else "the pair of section pretrain")
    base, upgraded = outline.base.compression, outline.upgraded.compression
    scale, size = upgraded // base, outline.size or outline.pretrained.config.sample_size * base
    if size % outline.unit:
        advice = f"Use {max(size // outline.unit, 1) * outline.unit}."
        return [Finding("failed", f"image_size {size} is not a multiple of {outline.unit}.", advice)]
    values = {"base": outline.tokens(size // scale, base)}
    message = f"{name}: {values['base']:,} at {size // scale} px"
    if scale > 1:
        values |= {"upgraded": outline.tokens(size, upgraded), "native": outline.tokens(size, base)}
        message += f"; {values['upgraded']:,} at {size} px, and {values['native']:,} without the upgrade"
    return [Finding("ok", f"{message}.", values=values)]


def check_memory(examination: Examination) -> list[Finding]:
    """What each stage needs, against the device."""
    findings = [_memory(examination, stage) for stage in examination.stage_costs]
    return findings + _assumptions_made(examination)


def check_cost(examination: Examination) -> list[Finding]:
    """Parameters, FLOPs and hours of each stage, and of all of them."""
    findings = [_cost(examination, stage) for stage in examination.stage_costs]
    precisions = {stage.cost.precision for stage in examination.stage_costs}
    gpus = [gpu for gpu in _gpus(examination) if all(map(gpu.computes, precisions))]
    if len(findings) > 1 and gpus:
        devices, stages = examination.devices, examination.stage_costs
        hours = {gpu.name: sum(stage.cost.hours(gpu, devices=devices) for stage in stages) for gpu in gpus}
        message = f"the whole run: {_durations(hours, devices)}, previews and evaluation left out."
        findings.append(Finding("ok", message, values={"hours": hours}))
    return findings


def assumptions() -> list[str]:
    """What the estimates rest on, for people."""
    return [f"{name}: {text}" for name, text in ASSUMPTIONS.items()]


def _assumptions_made(examination: Examination) -> list[Finding]:
    """What had to be assumed of this recipe; known once its stages are counted."""
    assumed = examination.outline.assumed
    return [Finding("warning", f"Assumed here and below: {'; '.join(assumed)}.")] if assumed else []


def _memory(examination: Examination, stage: StageCost) -> Finding:
    cost, memory = stage.cost, stage.cost.memory
    name, limit = _device(examination)
    values = {
        **asdict(memory),
        "stage": cost.stage,
        "total": memory.total,
        "largest": memory.largest,
        "at_once": cost.at_once,
        "device": name,
        "limit": limit,
    }
    parts = ", ".join(f"{part} {gib(size)}" for part, size in memory.parts.items())
    message = f"{cost.stage}: about {gib(memory.total)} for {cost.at_once} images at once: {parts}"
    if limit is None:
        fitting = [gpu for gpu in GPUS.values() if gpu.computes(cost.precision) and _holds(gpu.memory, cost)]
        fits = f"the smallest GPU for that is {fitting[0].name}" if fitting else "no GPU of the table holds that"
        return Finding("ok", f"{message}; {fits}.", "" if fitting else _smaller(stage), values)
    message = f"{message}; {name} has {gib(limit)}."
    if memory.total > limit:
        return Finding("failed", message, _smaller(stage), values)
    if not _holds(limit, cost):
        return Finding("warning", f"{message} That is close.", _smaller(stage), values)
    return Finding("ok", message, values=values)


def _cost(examination: Examination, stage: StageCost) -> Finding:
    cost, training = stage.cost, stage.training
    message = f"{cost.stage}: "
    values = {
        "stage": cost.stage,
        "forward_flops_image": cost.flops.forward,
        "backward_flops_image": cost.flops.backward,
        "utilisation": UTILISATION,
    }
    if training is not None:
        step = cost.flops.total * training.batch_size
        values |= {"step_flops": step, "steps": training.steps}
        for learner, count in cost.parameters.items():
            values |= {f"{learner}_{name}_parameters": number for name, number in asdict(count).items()}
            adapters = f" ({_count(count.adapters)} LoRA)" if count.adapters else ""
            trained = f"{_count(count.trained)} of {_count(count.total)} parameters"
            message += f"{trained} of the {learner} trained{adapters}; "
        message += f"{readable(step, 'FLOP')} a step of {training.batch_size} images; {training.steps:,} steps"
    else:
        message += f"{readable(cost.flops.total, 'FLOP')} an image; {cost.images:,} images"
    gpus = [gpu for gpu in _gpus(examination) if gpu.computes(cost.precision)]
    hours = {gpu.name: cost.hours(gpu, devices=examination.devices) for gpu in gpus}
    values["hours"] = hours
    if not hours:
        return Finding("warning", f"{message}; no rate of this device in {cost.precision} is known.", values=values)
    return Finding("ok", f"{message}: {_durations(hours, examination.devices)}.", values=values)


def _durations(hours: dict[str, float], devices: int) -> str:
    count = "one" if devices == 1 else str(devices)
    return ", ".join(f"{_duration(spent)} on {count} {name}" for name, spent in hours.items())


def _duration(spent: float) -> str:
    """Hours for people."""
    if spent < 1 / 60:
        return f"{spent * 3600:.2g} s"
    return f"{spent * 60:.0f} min" if spent < 1 else f"{spent:,.0f} h" if spent >= 10 else f"{spent:.1f} h"


def _gpus(examination: Examination) -> list[Gpu]:
    """The device that is meant, or at hand, or a few to compare."""
    if examination.gpu is not None:
        return [named_gpu(examination.gpu)]
    if examination.device.type == "cuda":
        known = gpu_like(torch.cuda.get_device_properties(examination.device).name)
        return [] if known is None else [known]
    return [GPUS[name] for name in ("RTX 4090", "A100", "H100")]


def _device(examination: Examination) -> tuple[str | None, int | None]:
    """(name, bytes) of the device that is meant or at hand."""
    if examination.gpu is not None:
        gpu = named_gpu(examination.gpu)
        return gpu.name, gpu.memory
    if examination.device.type == "cuda":
        found = torch.cuda.get_device_properties(examination.device)
        return found.name, found.total_memory
    return None, None


def _smaller(stage: StageCost) -> str:
    """What to do about a stage that does not fit."""
    advice = "; or ".join(_savings(stage)) or "take a larger device"
    return f"{advice[0].upper()}{advice[1:]}."


def _savings(stage: StageCost) -> Iterator[str]:
    training, section = stage.training, stage.cost.stage
    if training is None:
        if stage.cost.at_once > 1:
            yield f"lower {section.partition(':')[0]}.batch_size"
        return
    if stage.can_checkpoint and not _is_checkpointed(training):
        yield f"set {section}.gradient_checkpointing: true"
    if stage.cost.at_once > 1:
        yield f"raise {section}.accumulation above {training.accumulation}"
    if isinstance(training, FinetuneConfig):
        yield from _lora_savings(training.lora, section, training.precision)


def _lora_savings(lora: LoraSettings | None, section: str, precision: str) -> Iterator[str]:
    if lora is None:
        yield f"set {section}.lora"
    elif lora.frozen_precision == "fp32" and precision == "bf16":
        yield "set finetune.lora.frozen_precision: bf16"


def _is_checkpointed(training: object) -> bool:
    return isinstance(training, DiffusionConfig | ReconstructionConfig) and training.gradient_checkpointing


def _holds(limit: int, cost: Cost) -> bool:
    return cost.memory.total <= _COMFORTABLE * limit


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"
