"""PixArt-alpha and PixArt-Sigma: conv patch embedder (p = 2), head with a learned sigma, cross-attention to text.

Head rows are [p*p, noise or variance, channel]: the prediction is [base noise, detail noise, base variance,
detail variance], and the pipelines drop the second half. The position table is computed, not saved, and scaled by
`sample_size` and `interpolation_scale`: neither may change. Resolution binning picks sizes by `sample_size` too: it
would draw half the side and enlarge the image. (PixArt-alpha at 1024 px is also conditioned on the image's size.)
"""

from davae.backbones.base import Backbone

PIXART = Backbone(
    class_name="PixArtTransformer2DModel",
    convention="noise",
    condition="text",
    conditioned_on="T5 text: prompt, negative_prompt (prompt_embeds, prompt_attention_mask)",
    embedders=("pos_embed.proj",),
    head="proj_out",
    default_size="asked",
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "adaln_single.linear"),
    pipelines=("PixArtSigmaPipeline",),
    takes_negative=True,
    call_with={"use_resolution_binning": False},
)
