"""Companion to the PatchSAE paper: sparse autoencoders on the patches inside CLIP (ICLR 2025)."""

__version__ = "0.1.0"
