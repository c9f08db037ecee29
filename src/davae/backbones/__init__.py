"""What differs between diffusion transformers, one file a family."""
