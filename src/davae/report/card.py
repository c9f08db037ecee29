"""Owner of README.md in an exported pipeline: the model card, made from facts and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from davae.core.layout import LatentLayout
from davae.evaluate.results import Measurement, Results
from davae.report.licences import Licence

_PAPER = """@inproceedings{cai2026davae,
  title={{DA-VAE: Plug-in Latent Compression for Diffusion via Detail Alignment}},
  author={Cai, Xin and You, Zhiyuan and Zhang, Zhoutong and Xue, Tianfan},
  booktitle={CVPR},
  year={2026}
}"""
_DAVAE_PIPELINES = ("LightningDiTPipeline", "HunyuanDiTPipelineDA")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says.

    Args:
        name: of the model.
        pipeline_class: of the saved pipeline.
        base_model: hub id of the pretrained pair; None where it has none.
        layout: channels of the latent.
        scale: s.
        compression: pixels a side to a latent position.
        image_size: default side of the images, pixels; None where every call names it.
        tokens: of an image of that size.
        dtype: of the saved weights.
        licence: see `licence_of`.
        call: arguments of a call in the example, as source.
        recipe: of the run, without paths of a machine; empty where there is none.
        results: of the run.
        gallery: file beside the card that shows images.
    """

    name: str
    pipeline_class: str
    base_model: str | None
    layout: LatentLayout
    scale: int
    compression: int
    image_size: int | None
    tokens: int | None
    dtype: str
    licence: Licence | None = None
    call: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    results: Results | None = None
    gallery: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether images are drawn from prompts."""
        return "prompt" in self.call

    @property
    def changes(self) -> str:
        """What was done to the pretrained pair, for a NOTICE."""
        return (
            f"the autoencoder gained a detail encoder and a joint decoder for {self.scale} times the side of the "
            f"images, {self.layout.detail_channels} detail channels beside the {self.layout.base_channels} base "
            f"channels; the transformer was widened to them and fine-tuned. Made with davae."
        )


def model_card(facts: CardFacts) -> str:
    """The whole README.md, front matter included."""
    sections = [
        f"# {facts.name}",
        _what(facts),
        "" if facts.gallery is None else f"![Images drawn with it, not chosen]({facts.gallery})",
        _usage(facts),
        _training(facts),
        "" if facts.results is None else _results(facts.results),
        _limits(facts),
        _licence(facts),
        f"## Citation\n\nThe method:\n\n```bibtex\n{_PAPER}\n```",
    ]
    return f"---\n{_front_matter(facts)}---\n\n" + "\n\n".join(part for part in sections if part) + "\n"


def _front_matter(facts: CardFacts) -> str:
    matter: dict[str, str | list[str]] = {"library_name": "diffusers"}
    matter["pipeline_tag"] = "text-to-image" if facts.is_text else "unconditional-image-generation"
    if facts.base_model is not None:
        matter["base_model"] = facts.base_model
        matter["base_model_relation"] = "finetune"
    if facts.licence is not None:
        matter["license"] = facts.licence.identifier
        if facts.licence.name:
            matter |= {"license_name": facts.licence.name, "license_link": facts.licence.link}
    matter["tags"] = ["diffusers", "davae", "text-to-image" if facts.is_text else "class-conditional"]
    return yaml.safe_dump(matter, sort_keys=False)


def _what(facts: CardFacts) -> str:
    origin = "a pretrained pair" if facts.base_model is None else _hub(facts.base_model)
    size = "images" if facts.image_size is None else f"{facts.image_size} px images"
    tokens = "" if facts.tokens is None else f", on {facts.tokens:,} tokens"
    return (
        f"{origin[0].upper()}{origin[1:]}, upgraded with [DA-VAE](https://github.com/caixin98/DA-VAE) to draw {size}"
        f"{tokens}: {facts.scale} times the side, with the tokens of the small image. Every latent position stands "
        f"for {facts.compression} x {facts.compression} pixels and holds {facts.layout.base_channels} base channels, "
        f"as in the pretrained autoencoder, and {facts.layout.detail_channels} detail channels."
    )


def _hub(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})"


def _usage(facts: CardFacts) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in facts.call.items())
    library = "davae" if facts.pipeline_class in _DAVAE_PIPELINES else "diffusers"
    load = f'pipe = {facts.pipeline_class}.from_pretrained("PATH_OR_HUB_ID", dtype=torch.{facts.dtype})'
    code = [
        "import davae  # first: diffusers looks the autoencoder's class up among imported modules",
        "import torch",
        f"from {library} import {facts.pipeline_class}",
        "",
        load,
        'pipe.to("cuda")',
        f"image = pipe({arguments}).images[0]",
    ]
    return "## Use\n\nWith the packages `davae` and `diffusers`:\n\n```python\n" + "\n".join(code) + "\n```"


def _training(facts: CardFacts) -> str:
    if not facts.recipe:
        return ""
    shown = {key: value for key, value in facts.recipe.items() if key not in ("name", "device", "evaluate")}
    text = yaml.safe_dump(_plain(shown), sort_keys=False)
    rows = _rows(facts.recipe)
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    return (
        "## Training and sampling settings\n\n"
        + (f"{table}\n\n" if rows else "")
        + "<details><summary>The whole recipe</summary>\n\n```yaml\n"
        + text
        + "```\n\n</details>"
    )


def _rows(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings that readers look for first."""
    rows = []
    for title, section in (("Autoencoder", "tokenizer"), ("Transformer", "finetune"), ("Then", "realism")):
        values = recipe.get(section)
        if values is None:
            continue
        if "from" in values:
            rows.append((title, "of another run"))
            continue
        lora = values.get("lora")
        trained = "" if lora is None else f", LoRA of rank {lora['rank']} with patch embedder and head in full"
        rows.append(
            (title, f"{values['steps']:,} steps of {values['batch_size']}, lr {values['optim']['lr']}{trained}")
        )
    sample = recipe.get("sample")
    if sample is not None:
        rows += [(f"Sampling, {key}", str(sample[key])) for key in ("steps", "guidance_scale") if key in sample]
    return rows


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _results(results: Results) -> str:
    parts = ["## Results\n\nMeasured by the training run; the protocol stands under each table."]
    groups = dict.fromkeys(item.group for item in results.measurements)
    parts += [_table(group, [item for item in results.measurements if item.group == group]) for group in groups]
    return "\n\n".join(parts)


def _table(group: str, items: list[Measurement]) -> str:
    columns = list(dict.fromkeys(item.column for item in items))
    cells = {(item.row, item.column): f"{item.value:.4g} {item.unit}".strip() for item in items}
    lines = ["| | " + " | ".join(map(_cell, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in dict.fromkeys(item.row for item in items):
        lines.append(f"| {_cell(row)} | " + " | ".join(cells.get((row, column), "") for column in columns) + " |")
    protocols: dict[str, dict[str, None]] = {}
    for item in items:
        text = ", ".join(f"{key} {value}" for key, value in item.protocol.items())
        protocols.setdefault(text, {})[item.column] = None
    notes = [f"Protocol of {', '.join(measured)}: {text}." for text, measured in protocols.items() if text]
    return "\n\n".join([f"### {group}", "\n".join(lines), *notes])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _limits(facts: CardFacts) -> str:
    measured = "" if facts.results is not None else " No measurement came with this export."
    return (
        "## Limits\n\n"
        "It inherits the biases and failures of the pretrained model, and it was adapted on the data of the recipe "
        "only: what these do not show may be drawn with less detail. LoRA files made for the pretrained model load "
        "if they leave the patch embedder and output head alone; autoencoders and ControlNets made for it do not "
        f"fit.{measured}"
    )


def _licence(facts: CardFacts) -> str:
    if facts.licence is None:
        return (
            "## Licence\n\nThe licence of the pretrained model holds for what was made from it. This card states "
            "none, because the export did not know it; add it before you share the model."
        )
    licence = facts.licence
    linked = f"[{licence.title}]({licence.link})" if licence.link else licence.title
    parts = [f"## Licence\n\n{linked}."]
    if licence.display:
        parts.append(f"**{licence.display}**")
    if licence.notice:
        parts.append(f"> {licence.notice}")
    if licence.duties:
        parts.append("Whoever uses or passes it on:\n\n" + "\n".join(f"- {duty}" for duty in licence.duties))
    return "\n\n".join(parts)
