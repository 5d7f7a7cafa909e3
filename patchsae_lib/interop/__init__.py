"""Other libraries' formats, in and out: autoencoders, prompts, CLIPs, the Hugging Face Hub."""

from patchsae_lib.interop.autoencoders import load_sae, read_config, save_sae
from patchsae_lib.interop.openclip import load_clip
from patchsae_lib.interop.prompts import load_prompts, save_prompts
from patchsae_lib.interop.saelens import write_saelens

__all__ = [
    "load_clip", "load_prompts", "load_sae", "read_config", "save_prompts", "save_sae",
    "write_saelens",
]  # fmt: skip
