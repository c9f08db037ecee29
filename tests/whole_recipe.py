"""A recipe with every section, which says nothing but what it must."""

from typing import Any

TRAINING = {"steps": 1, "batch_size": 1}
SMALLEST: dict[str, Any] = {
    "name": "smallest",
    "data": {"kind": "solids"},
    "image_size": 32,
    "pretrain": {
        "image_size": 16,
        "autoencoder": {
            **TRAINING,
            "model": "AutoencoderKL",
            "model_config": {},
            "perceptual": {},
            "pyramid": {},
            "spectrum": {},
            "adversarial": {},
            "vision": {"model": "dinov2"},
        },
        "transformer": {**TRAINING},
    },
    "judge": {**TRAINING},
    "tokenizer": {
        **TRAINING,
        "perceptual": {},
        "pyramid": {},
        "spectrum": {},
        "adversarial": {},
        "generative_alignment": {},
    },
    "cache": {},
    "prompts": {},
    "finetune": {**TRAINING, "lora": {}, "preview": {}},
    "realism": {"data": {"kind": "solids"}},
    "sample": {},
    "evaluate": {},
}
