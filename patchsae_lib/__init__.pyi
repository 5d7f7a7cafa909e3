# What `__init__.py` imports when it is asked for, for editors and type checkers.
from patchsae_lib import figures as figures
from patchsae_lib.ablation import mask_latents as mask_latents
from patchsae_lib.clip import SplitCLIP as SplitCLIP
from patchsae_lib.evaluation import evaluate_sae as evaluate_sae
from patchsae_lib.explorer import Explorer as Explorer
from patchsae_lib.interop import load_clip as load_clip
from patchsae_lib.interop import load_prompts as load_prompts
from patchsae_lib.interop import load_sae as load_sae
from patchsae_lib.interop import save_sae as save_sae
from patchsae_lib.latents import LatentTable as LatentTable
from patchsae_lib.maple import adapt as adapt
from patchsae_lib.maple import train_prompts as train_prompts
from patchsae_lib.pictures import open_pictures as open_pictures
from patchsae_lib.profiles import Profile as Profile
from patchsae_lib.profiles import load_profile as load_profile
from patchsae_lib.sae import SAE as SAE
from patchsae_lib.study import Study as Study
from patchsae_lib.tokens import Tokens as Tokens
from patchsae_lib.tokens import collect as collect
from patchsae_lib.training import train as train
from patchsae_lib.world import World as World

__version__: str
EXPORTS: dict[str, tuple[str, ...]]
