"""The networks: structured autoencoder, LightningDiT, discriminator, perceptual distance."""
