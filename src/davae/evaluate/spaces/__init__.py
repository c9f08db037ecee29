"""Feature spaces: 8-bit images in, named feature vectors out, each with the identity of what made them."""
