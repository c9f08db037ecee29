"""SD3 and SD3.5: conv patch embedder (p = 2), [p*p, channels] head, position table saved as a buffer."""

from davae.backbones.base import Backbone

SD3 = Backbone(
    class_name="SD3Transformer2DModel",
    inputs=("pos_embed.proj.weight",),
    outputs=("proj_out.weight", "proj_out.bias"),
    output_groups=lambda config: config.patch_size**2,
    widened_config=lambda config, channels: {"in_channels": channels, "out_channels": channels},
    num_tokens=lambda config, height, width: (height // config.patch_size) * (width // config.patch_size),
    # The reference's targets: image-stream attention, second feed-forward layer, image AdaLN.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear"),
    heads=("pos_embed.proj", "proj_out"),
)
