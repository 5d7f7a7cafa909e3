"""Scripts that made what ships in `data/`: the small CLIP, its card, its autoencoder, prompts."""
