"""From noise to latents to images."""
