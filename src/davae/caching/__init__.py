"""A source of images or captions through an autoencoder or text encoders, into a cache."""
