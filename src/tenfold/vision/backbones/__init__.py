"""Backbones of the vision wing: ViT and ConvNeXt, images in, weights of every layout."""
