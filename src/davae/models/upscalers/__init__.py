"""Super-resolution networks: the second stage that a larger latent is compared with. Inference alone."""
