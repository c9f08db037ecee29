"""The model card: its front matter as the hub reads it, and what a licence asks for."""

from typing import Any

import pytest
import yaml

from davae.core.layout import LatentLayout
from davae.evaluate.results import Measurement, Results
from davae.report.card import CardFacts, model_card
from davae.report.licences import FLUX1_DEV, STABILITY, licence_of, notice

SD35 = "stabilityai/stable-diffusion-3.5-medium"
# As the agreement of July 5, 2024 words it in section IV(a).
ATTRIBUTION = (
    "This Stability AI Model is licensed under the Stability AI Community License, "
    "Copyright \u00a9 Stability AI Ltd. All Rights Reserved"
)
RECIPE = {
    "name": "sd35m-1k",
    "device": "auto",
    "data": {"kind": "folder", "path": "photographs"},
    "tokenizer": {"steps": 20000, "batch_size": 32, "optim": {"lr": 1e-4, "betas": (0.9, 0.95)}},
    "finetune": {"steps": 50000, "batch_size": 64, "optim": {"lr": 5e-5}, "lora": {"rank": 256}},
    "sample": {"steps": 28, "guidance_scale": 4.0},
}


def facts(**changes: Any) -> CardFacts:
    values: dict[str, Any] = {
        "name": "sd35m-1k",
        "pipeline_class": "StableDiffusion3Pipeline",
        "base_model": SD35,
        "layout": LatentLayout(16, 16),
        "scale": 2,
        "compression": 16,
        "image_size": 1024,
        "tokens": 1024,
        "dtype": "bfloat16",
        "licence": STABILITY,
        "call": {"prompt": '"a lighthouse"', "num_inference_steps": "28"},
        "recipe": RECIPE,
    }
    return CardFacts(**(values | changes))


def matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_front_matter_is_what_the_hub_reads() -> None:
    assert matter(model_card(facts())) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": SD35,
        "base_model_relation": "finetune",
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": f"https://huggingface.co/{SD35}/blob/main/LICENSE.md",
        "tags": ["diffusers", "davae", "text-to-image"],
    }
    of_classes = matter(model_card(facts(call={"class_labels": "[0]"}, base_model=None, licence=None)))
    assert of_classes == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "davae", "class-conditional"],
    }


def test_the_example_is_python_that_imports_davae_first() -> None:
    code = model_card(facts()).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert code.startswith("import davae")
    assert "from diffusers import StableDiffusion3Pipeline" in code
    assert "dtype=torch.bfloat16" in code
    assert 'pipe(prompt="a lighthouse", num_inference_steps=28)' in code
    own = model_card(facts(pipeline_class="LightningDiTPipeline", call={"class_labels": "[0]"}))
    assert "from davae import LightningDiTPipeline" in own


def test_settings_and_results_come_with_their_protocol() -> None:
    card = model_card(facts())
    assert "| Autoencoder | 20,000 steps of 32, lr 0.0001 |" in card
    assert (
        "| Transformer | 50,000 steps of 64, lr 5e-05, LoRA of rank 256 with patch embedder and head in full |"
        in card
    )
    assert "| Sampling, guidance_scale | 4.0 |" in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["finetune"] == RECIPE["finetune"]
    assert recipe["tokenizer"]["optim"]["betas"] == [0.9, 0.95]
    assert "No measurement came with this export." in card
    shared = {"images": 8, "resize": "bicubic"}
    results = Results(
        measurements=[
            Measurement("Reconstruction", "full | all", "PSNR", 27.412, "dB", "higher", shared),
            Measurement("Reconstruction", "base", "PSNR", 26.1, "dB", "higher", {**shared, "images": 4}),
            Measurement("Reconstruction", "full | all", "SSIM", 0.81234, "", "higher", shared),
        ]
    )
    card = model_card(facts(results=results))
    assert "| | PSNR | SSIM |\n|---|---|---|\n| full \\| all | 27.41 dB | 0.8123 |\n| base | 26.1 dB |  |" in card
    assert "Protocol of PSNR, SSIM: images 8, resize bicubic." in card
    assert "Protocol of PSNR: images 4, resize bicubic." in card
    assert "No measurement" not in card


def test_a_derivative_of_sd3_says_so() -> None:
    assert STABILITY.notice == ATTRIBUTION
    card = model_card(facts())
    assert ATTRIBUTION in card
    assert "**Powered by Stability AI**" in card
    assert "https://stability.ai/use-policy" in card
    text = notice(STABILITY, SD35, facts().changes)
    assert text.splitlines()[0] == ATTRIBUTION
    assert f"applies to the parts taken from {SD35}" in text
    assert "Changes: the autoencoder gained" in text  # the licence wants changes named
    assert STABILITY.link in text


def test_licences_are_chosen_or_recognised() -> None:
    assert licence_of("auto", "StableDiffusion3Pipeline", None) is STABILITY
    assert licence_of("auto", "StableDiffusion3Img2ImgPipeline", SD35) is STABILITY
    assert licence_of("auto", "FluxPipeline", "black-forest-labs/FLUX.1-dev") is FLUX1_DEV
    assert licence_of("auto", "FluxPipeline", "black-forest-labs/FLUX.1-schnell") is None
    assert licence_of("none", "StableDiffusion3Pipeline", SD35) is None
    assert licence_of("stabilityai-ai-community", "LightningDiTPipeline", None) is STABILITY
    own = licence_of("apache-2.0", "StableDiffusion3Pipeline", None)
    assert matter(model_card(facts(licence=own)))["license"] == "apache-2.0"
    with pytest.raises(ValueError, match="Unknown licence; got 'Do what'. Allowed: auto, none, stabilityai-ai-comm"):
        licence_of("Do what", "StableDiffusion3Pipeline", None)


def test_an_unknown_licence_is_not_made_up() -> None:
    card = model_card(facts(licence=None))
    assert not {"license", "license_name"} & matter(card).keys()
    assert "add it before you share the model" in card
    assert "Stability" not in card
    limited = model_card(facts(pipeline_class="FluxPipeline", licence=FLUX1_DEV))
    assert matter(limited)["license_name"] == "flux-1-dev-non-commercial-license"
    assert "non-commercial purposes only" in limited
