"""Licences of pretrained models that go on to hold for what is made from them, and what they ask of a copy.

Only licences whose obligations were read are here. Nothing in this file is legal advice.
"""

import re
from dataclasses import dataclass

AUTO, NONE = "auto", "none"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A licence as a model card names it.

    Args:
        identifier: `license` of the card; "other" has a name and a link.
        name: `license_name`.
        title: for readers.
        link: where its text is.
        notice: the line that the licence wants in a "Notice" file of every copy, word for word.
        display: words that it wants shown wherever the model is presented.
        duties: what whoever passes a copy on has to do, one sentence each.
    """

    identifier: str
    name: str = ""
    title: str = ""
    link: str = ""
    notice: str = ""
    display: str = ""
    duties: tuple[str, ...] = ()


STABILITY = Licence(
    identifier="other",
    name="stabilityai-ai-community",
    title="Stability AI Community License",
    link="https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    # Section IV(a) of the agreement of July 5, 2024.
    notice=(
        "This Stability AI Model is licensed under the Stability AI Community License, "
        "Copyright \u00a9 Stability AI Ltd. All Rights Reserved"
    ),
    display="Powered by Stability AI",
    duties=(
        "Give a copy of the agreement to whoever gets the model.",
        "Keep the NOTICE file.",
        'Show "Powered by Stability AI" on the page or in the documentation that presents it.',
        "Respect the acceptable use policy, https://stability.ai/use-policy.",
        "For commercial use, register at https://stability.ai/community-license; above 1,000,000 US dollars of "
        "yearly revenue an enterprise licence is needed.",
    ),
)
FLUX1_DEV = Licence(
    identifier="other",
    name="flux-1-dev-non-commercial-license",
    title="FLUX.1 [dev] Non-Commercial License",
    link="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    duties=(
        "Use the model for non-commercial purposes only.",
        "Give a copy of the licence to whoever gets the model, and say that the rights come from Black Forest Labs.",
        "Filter unlawful content where you deploy it.",
    ),
)
LICENCES = {licence.name: licence for licence in (STABILITY, FLUX1_DEV)}


def licence_of(choice: str, pipeline_class: str, base_model: str | None) -> Licence | None:
    """The licence that a copy is under.

    Args:
        choice: "auto", "none", a name in `LICENCES`, or any identifier of the hub ("apache-2.0") for weights that
            are yours to license.
        pipeline_class: with "auto", every pipeline of Stable Diffusion 3 counts as a derivative of Stability AI's
            weights, because whoever omits the notice by mistake breaks the licence.
        base_model: hub id of the pretrained pair.

    Returns:
        None where no licence is to be stated: with "none", and with "auto" where it is not known.

    Raises:
        ValueError: `choice` cannot be an identifier.
    """
    if choice == AUTO:
        if pipeline_class.startswith("StableDiffusion3"):
            return STABILITY
        return FLUX1_DEV if base_model == "black-forest-labs/FLUX.1-dev" else None
    if choice == NONE:
        return None
    if choice in LICENCES:
        return LICENCES[choice]
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", choice):
        raise ValueError(
            f"Unknown licence; got {choice!r}. Allowed: {AUTO}, {NONE}, {', '.join(LICENCES)}, or an identifier of "
            f"the hub such as apache-2.0."
        )
    return Licence(identifier=choice, title=choice)


def notice(licence: Licence, base_model: str | None, changes: str) -> str:
    """Text of the NOTICE file: the required line, to what it applies, and that and how the model was changed."""
    origin = base_model or "the pretrained pipeline"
    return (
        f"{licence.notice}\n\n"
        f"The line above applies to the parts taken from {origin} and to what was derived from them.\n\n"
        f"Changes: {changes}\n\n"
        f"Text of the licence: {licence.link}\n\n"
        f"{licence.display}\n"
    )
