"""Images and latents in, numbers with their protocol out."""
