"""Companion to "Sparse autoencoders reveal selective remapping of visual concepts during adaptation"."""

__version__ = "0.1.0"
