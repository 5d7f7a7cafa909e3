"""`Study`: a profile's models, pictures, tokens and artefacts, for a notebook or a script.

    study.clip, study.sae                   # SplitCLIP, SAE, on the device
    study.train, study.test                 # Split: pictures, labels, class_names, head, tokens
    study.table                             # LatentTable of the training split
    study.tasks["Flower species"].base      # a Split; .adapted(seed).base: in the adapted model

Each is made when it is first asked for. Tokens and tables are kept, with all that decides them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pandas as pd
import torch
from torch import Tensor

from patchsae_lib import artefacts
from patchsae_lib.ablation import Masked, mask_latents
from patchsae_lib.artefacts import DATA, ArtefactError, config_hash, run_dir, weights_hash
from patchsae_lib.clip import OPENAI_TEMPLATES, SplitCLIP, Template
from patchsae_lib.distributed import best_device
from patchsae_lib.interop import load_clip, load_prompts, load_sae, save_prompts, save_sae
from patchsae_lib.interop.hub import local_path
from patchsae_lib.interop.lora import load_lora, save_lora
from patchsae_lib.interop.openclip import WordTokenizer
from patchsae_lib.latents import LatentTable, scan_tokens
from patchsae_lib.maple import Prompts, Watch, adapt, run_of, train_prompts
from patchsae_lib.names import RULE, SPLIT
from patchsae_lib.parameters import injected
from patchsae_lib.pictures import TEMPLATE, Pictures, Subset, labels_of, open_pictures
from patchsae_lib.pictures.naming import name_of, pictures_identity
from patchsae_lib.pictures.shots import base_classes, few_shot, with_shuffled_labels
from patchsae_lib.pictures.sources import CHECKED, template_of, unwrapped, world_of
from patchsae_lib.profiles import (
    ModelConfig,
    Profile,
    PromptsConfig,
    TuningConfig,
    fit_to,
    load_profile,
    with_pictures,
)
from patchsae_lib.sae import SAE
from patchsae_lib.splits import Split, Task
from patchsae_lib.truth import VALUES
from patchsae_lib.tuning import Adapted, LoRA, TunedCLIP, head_of, probe_head, tune, with_lora
from patchsae_lib.world import CLASSES
from patchsae_lib.world.tasks import STYLE_TEMPLATES

SCORED = 2**32  # bytes, 4 GB, for the pictures on whose patches units are scored
PATCH = 24, 6000  # bytes that a scored patch takes: so many for each of d_vit, and a constant
ACTIVE = "f · ‖W_dec‖ > τ"  # what is counted: another rule makes other tables
CONTROLS = ("", "swapped", "shuffled", "picture", "text")  # of prompts
TUNED = ("lora", "tuned", "probe")  # what adapts, beside prompts
TOWER = dict(rank=0, lr=3e-5, epochs=5)  # to learn every weight of the picture tower


class Study:
    """A profile's models, pictures and artefacts, opened, checked, and placed on the device once.

    `images` replaces the profile's pictures (`folder:/my/photos`). `sae` is `shipped`, the
    autoencoder in `data/` if it was trained on this very CLIP (else `live`); `live`, the one that
    notebook 1 trains; or what `load_sae` reads. Of the tasks, `shots` is the number of training
    pictures of a class (0: the profile's), `prompts` a file of them instead of those that are
    trained, and `n_task` the largest number of test pictures.

    Raises `ValueError` for an unknown profile or notebook parameter.
    """

    def __init__(
        self,
        profile: str | Path | Profile = "world",
        images: str = "",
        sae: str = "shipped",
        shots: int = 0,
        prompts: str = "",
        n_task: int = 140,
        device: str | torch.device | None = None,
    ) -> None:
        injected(executed_cells())
        loaded = profile if isinstance(profile, Profile) else load_profile(profile)
        loaded = with_pictures(loaded, images) if images else loaded
        self.loaded = loaded  # with the shots of the file: what identities are made of
        shots = shots or loaded.prompts.shots
        self.profile = replace(loaded, prompts=replace(loaded.prompts, shots=shots))
        self.folder, self.which_sae = run_dir(loaded.name), sae
        self.prompts_file, self.n_task = prompts, n_task
        self.device = torch.device(device or best_device())
        self.open_pictures = lru_cache(maxsize=None)(self._open_pictures)

    def __repr__(self) -> str:
        clip, train, test = self.clip, self.train, self.test
        rows, columns = clip.grid
        return (
            f"profile {self.profile.name}: {len(train):,} pictures to train on, {len(test):,} "
            f"held out, {len(train.class_names)} classes\nblock {clip.block + 1} of "
            f"{clip.n_blocks}: CLS and {rows} × {columns} patches of width {clip.d_vit}"
        )

    @cached_property
    def clip(self) -> SplitCLIP:
        """The CLIP of the profile."""
        return load_clip(self.profile.model, self.device)

    @cached_property
    def clip_hash(self) -> str:
        """The hash of CLIP's weights."""
        return weights_hash(self.clip.model)

    @cached_property
    def sae(self) -> SAE:
        """The autoencoder under study."""
        if self.which_sae not in ("shipped", "live"):
            return load_sae(self.which_sae).to(self.device)
        if self.which_sae == "shipped" and self.shipped is not None:
            return self.shipped
        return self.kept("sae.safetensors", "1_training", read=load_sae, sae=None).to(self.device)

    @cached_property
    def sae_hash(self) -> str:
        """The hash of the autoencoder's weights."""
        return weights_hash(self.sae)

    @cached_property
    def shipped(self) -> SAE | None:
        """The autoencoder in `data/`, if it was trained on this CLIP, at this block and width."""
        return self._shipped("sae", self.clip)

    def _shipped(self, name: str, clip: SplitCLIP) -> SAE | None:
        about = shipped_identity(self.profile, self.clip_hash, clip)
        path = DATA / f"{name}.safetensors"
        try:
            sae = artefacts.load(path, about, made_by="recipes.autoencoder", read=load_sae)
        except ArtefactError:
            return None
        return sae.to(self.device)

    def alike(self, kind: str) -> dict[int, SAE]:
        """Read autoencoders that differ from `sae` in their "seed" or "block" alone, by number,
        `sae` among them: those that ship beside it, or else those that notebook 1 keeps."""
        if self.shipped is None or self.which_sae not in ("", "shipped"):
            return self.autoencoders(kind)
        own = self.clip.block + 1 if kind == "block" else 0
        alike = {own: self.shipped}
        for path in DATA.glob(f"saes/{kind}-*.safetensors"):
            number = int(path.stem.removeprefix(f"{kind}-"))
            clip = self.clip.at_block(number - 1) if kind == "block" else self.clip
            if (sae := self._shipped(f"saes/{path.stem}", clip)) is not None:
                alike[number] = sae
        return dict(sorted(alike.items()))

    @cached_property
    def shipped_partners(self) -> pd.DataFrame:
        """How well another seed finds the latents of the shipped autoencoder: by `latent`, the
        `partner cosine` (`latents.partners`) with one trained as long, and the `partner name`."""
        assert self.shipped is not None
        about = shipped_identity(self.profile, self.clip_hash, self.clip)
        about["sae"] = weights_hash(self.shipped)
        made_by = "recipes.autoencoder"
        return artefacts.load(DATA / "sae_partners.parquet", about, made_by=made_by)

    def at_block(self, block: int, n_train: int) -> Study:
        """Return the same study at another block of CLIP, with the first `n_train` of these
        training pictures, and all that are held out."""
        clip = self.clip.at_block(block)
        study = self._with(replace(self.profile.model, block=block), n_train, clip)
        if study.clip.block == self.clip.block:
            study.train.tokens = self.train.tokens.first(n_train)
        return study

    def untrained(self, n_train: int) -> Study:
        """Return the same study of a CLIP of random weights, with as many pictures: a control."""
        return self._with(replace(self.profile.model, pretrained="none"), n_train)

    def _with(self, model: ModelConfig, n_train: int, clip: SplitCLIP | None = None) -> Study:
        study = Study(replace(self.profile, model=model), sae="", device=self.device)
        if clip is not None:
            study.clip = clip
        first = self.train.select(range(n_train)), f"train, first of {len(self.train)}"
        for name, (split, source) in {"train": first, "test": (self.test, "test")}.items():
            place = study.place(split.pictures, self._spec(name), source)
            study.__dict__[name] = replace(split, clip=study.clip, keep=place)
        return study

    @cached_property
    def train(self) -> Split:
        """The training pictures of the profile."""
        return self.open(self._spec("train"), "train", self.profile.pictures.n_train)

    @cached_property
    def test(self) -> Split:
        """The held-out pictures; those without classes get the classes of `train`."""
        spec, n, names = self._spec("test"), self.profile.pictures.n_test, self.train.class_names
        test = self.open(spec, "test", n, among=names)
        if test.class_names != names:
            raise ValueError(f"the classes of {spec} are not those of {self._spec('train')}")
        return test

    @cached_property
    def naming(self) -> Split:
        """Pictures of the embedded world, with whose `shown` latents get names (of any CLIP)."""
        return self.open("world", SPLIT, min(RULE.pictures, max(70, len(self.train))))

    @cached_property
    def scored(self) -> Split:
        """Pictures of the embedded world, with whose `truth` units of any kind are compared: as
        many as the profile tests on or has, while `SCORED` bytes hold all that this needs."""
        per_patch = PATCH[0] * self.clip.d_vit + PATCH[1]
        fit = (SCORED - 5 * VALUES) // (per_patch * (self.clip.n_tokens - 1))
        n = min(self.profile.pictures.n_test or 500, max(70, len(self.train)), max(20, fit))
        return self.open("world", "test", n)

    def _spec(self, split: str) -> str:
        pictures = self.profile.pictures
        return pictures.test or pictures.spec if split == "test" else pictures.spec

    def _open_pictures(self, spec: str, split: str, n: int) -> Pictures:
        """Open pictures of a spec at the size that CLIP reads; fewer than 100,000 are tried."""
        return open_pictures(spec, split, n, self.clip.visual.image_size[0], check=None)

    def open(self, spec: str, split: str, n: int, among: Sequence[str] = ()) -> Split:
        """Open pictures as CLIP sees them; their tokens are kept in the run's folder.

        If none has a label, each gets CLIP's zero-shot prediction: among the names given, or among
        their own, or ImageNet's (the small CLIP: the world's), of which those that occur are kept.
        "Accuracy" then is agreement with untouched CLIP.
        """
        pictures = self.open_pictures(spec, split, n)
        place, templates = self.place(pictures, spec, split), self.templates(pictures)
        names = pictures.class_names
        opened = Split(self.clip, pictures, labels_of(pictures), names, templates, place)
        opened = opened.readable() if len(pictures) >= CHECKED else opened
        is_labelled = names and (opened.labels >= 0).any()
        return opened if is_labelled else self._labelled(opened, among or names)

    def see(self, pictures: Pictures) -> Split:
        """Return pictures of any origin as CLIP sees them; their tokens stay in memory."""
        names, templates = pictures.class_names, self.templates(pictures)
        return Split(self.clip, pictures, labels_of(pictures), names, templates)

    def _labelled(self, split: Split, among: Sequence[str]) -> Split:
        names = among or (CLASSES if self._is_small else open_clip.IMAGENET_CLASSNAMES)
        names = tuple(dict.fromkeys(names))  # ImageNet's list has two of them twice
        labelled = replace(split, class_names=names, templates=[TEMPLATE])
        labelled.tokens = split.tokens
        labels = labelled.predictions()
        if not among:
            print(f"no classes: labels are CLIP's zero-shot predictions of {len(names):,} names")
            used, labels = labels.unique(return_inverse=True)
            names = [names[i] for i in used.tolist()]
        pictures = Subset(split.pictures, labels=labels.tolist(), class_names=names)
        labelled = replace(split, pictures=pictures, labels=labels, class_names=tuple(names))
        labelled.tokens = split.tokens
        return labelled

    def templates(self, pictures: Pictures) -> Sequence[Template]:
        """Return the prompts of the zero-shot classifier: those of a task of the world; for the
        small CLIP, one for each style; else OpenAI's 80 (section 4.1)."""
        world = world_of(pictures)
        if world is not None and world.task.name not in ("world", "styles"):
            return world.task.templates
        return STYLE_TEMPLATES if self._is_small else OPENAI_TEMPLATES

    @property
    def _is_small(self) -> bool:
        return isinstance(self.clip.tokenizer, WordTokenizer)

    def place(
        self, pictures: Pictures, spec: str, split: str, **chosen: Any
    ) -> tuple[Path, dict[str, Any]]:
        """Return the folder of the tokens of pictures, or of some that are `chosen` from them, and
        all that decides them."""
        precision = "float32" if self.clip.first is None else "bfloat16"
        model = {"name": self.profile.model.name, "weights": self.clip_hash}
        hook = {"block": self.clip.block, "precision": precision}
        images = pictures_identity(pictures, spec, split)
        made_by = {"model": model | hook, "pictures": images | chosen}
        return self.folder / "tokens" / config_hash(made_by), made_by

    @cached_property
    def table(self) -> LatentTable:
        """The table of the training split: read if it is of exactly these models, pictures and
        constants, else counted and kept."""
        path, identity = self.folder / "latents.safetensors", self.identity()
        return artefacts.made_once(path, identity, self._count, LatentTable.load)

    def _count(self) -> LatentTable:
        counted = self.train.tokens, self.train.labels, self.train.class_names
        return scan_tokens(self.sae, *counted, self.profile.statistics)

    def references(self, latent: int, n: int = 8) -> Split:
        """The reference images of a latent, the n first at most; `IndexError` without it."""
        if latent not in range(self.table.size[0]):
            raise IndexError(f"latent {latent}: there are 0 to {self.table.size[0] - 1}")
        images = self.table.top_images[latent]
        return self.train.select(self.train.tokens.row_of(images[images >= 0][:n]))

    def autoencoders(self, kind: str) -> dict[Any, SAE]:
        """Read the autoencoders that notebook 1 keeps as `sae-<kind>-<name>`, by name, or by
        number if the name is one."""
        files = self.folder / f"sae-{kind}-*.safetensors"
        artefacts.note_reading(files, "1_training")  # which there are, too
        names = [p.stem.removeprefix(f"sae-{kind}-") for p in self.folder.glob(files.name)]
        names.sort(key=lambda name: name.zfill(9))  # 2 before 10
        read = partial(self.kept, made_by="1_training", read=load_sae, sae=None)
        saes = [read(f"sae-{kind}-{name}.safetensors").to(self.device) for name in names]
        return {int(k) if k.isdecimal() else k: sae for k, sae in zip(names, saes, strict=True)}

    def keep_autoencoders(self, kind: str, saes: Mapping[Any, SAE]) -> None:
        """Keep autoencoders by name or number, for `autoencoders(kind)`, in place of earlier
        ones."""
        for path in self.folder.glob(f"sae-{kind}-*.safetensors*"):  # sidecars, too
            path.unlink()
        for number, sae in saes.items():
            self.keep(f"sae-{kind}-{number}.safetensors", sae)

    def mask(
        self,
        split: Split,
        rankings: Mapping[str, Tensor],
        ks: Sequence[int],
        sae: SAE | None = None,
        classes: Tensor | None = None,
        error: bool = False,
    ) -> Masked:
        """`mask_latents` of a split's pictures, by the study's autoencoder or another."""
        read = split.clip, sae or self.sae, split.tokens, split.labels, split.head
        return mask_latents(*read, rankings, ks, classes=classes, error=error)

    def fitted(self, n_tokens: int = 0) -> Profile:
        """Return the profile with no more training steps than `n_tokens` (by default those of the
        training split) allow."""
        return fit_to(self.profile, n_tokens or len(self.train) * self.clip.n_tokens)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks that CLIP is adapted to, by title."""
        tasks = {}
        for spec in self.task_specs:
            train, test = self.training_pictures(spec), self._tested_pictures(spec)
            shots, learn = self.profile.prompts.shots, partial(self.adapted, spec)
            task = Task(self.clip, spec, train, test, shots, learn)
            if task.title in tasks:
                raise ValueError(f"two tasks would be called {task.title!r}, the second is {spec}")
            for part, opened, split in ((task.base, test, "test"), (task.learnt, train, "train")):
                rows = config_hash({"rows": unwrapped(part.pictures)[1]})
                part.keep = self.place(opened, spec, split, rows=rows)
            tasks[task.title] = task
        return tasks

    @property
    def task_specs(self) -> tuple[str, ...]:
        """The specs of the tasks: the profile's; or, given other pictures, these; or two of the
        world's if they have no classes."""
        if self.profile.tasks:
            return self.profile.tasks
        spec = self.profile.pictures.spec
        has_classes = len(self.training_pictures(spec).class_names) > 1
        return (spec,) if has_classes else ("world:flowers", "world:land")

    def training_pictures(self, spec: str) -> Pictures:
        """Open all training pictures of a task; of the profile's own, as many as it says."""
        pictures = self.profile.pictures
        return self.open_pictures(spec, "train", pictures.n_train if spec == pictures.spec else 0)

    def _tested_pictures(self, spec: str) -> Pictures:
        limits = self.n_task, self.profile.pictures.n_test  # 0: none
        return self.open_pictures(spec, "test", min(filter(None, limits), default=0))

    def adapted(self, spec: str, seed: int, kind: str, class_names: Sequence[str]) -> Adapted:
        """Return CLIP adapted to the base classes of a task, with the head of `class_names`.

        `kind` is one of `CONTROLS`, for `prompts`; "lora"; "tuned", for which every weight of the
        picture tower is learnt, and nothing kept; or "probe", CLIP with a linear probe in place of
        the base classes' text features. Raises `ValueError` for another.
        """
        if kind not in (*CONTROLS, *TUNED):
            known = ", ".join(filter(None, (*CONTROLS, *TUNED)))
            raise ValueError(f"adapted by {kind!r}: give one of {known}, or nothing for MaPLe")
        if kind not in TUNED:
            return adapt(self.clip, self.prompts(spec, seed, kind), class_names)
        config = self._tuning(seed, **TOWER)
        pictures, names, template, _ = self._few_shot(spec, config)
        if kind == "lora":
            return with_lora(self.clip, self.lora(spec, seed), class_names, template)
        head = head_of(self.clip, class_names, template)
        if kind == "tuned":
            model = tune(self.clip, pictures, names, config, template)[0]
            return TunedCLIP(self.clip, model, head)
        chosen = few_shot(labels_of(pictures), len(names), config.shots, seed)
        learnt = self.see(Subset(pictures, chosen.tolist()))
        probe = probe_head(learnt.features(), learnt.labels, len(names))
        text = torch.cat([probe, head[len(names) :]])
        return TunedCLIP(self.clip, self.clip.model, text)

    def prompts(
        self,
        spec: str,
        seed: int = 0,
        control: str = "",
        train: bool = False,
        folders: Sequence[Path] = (),
        watch: Watch | None = None,
    ) -> Prompts:
        """Return prompts for the base classes of the task `spec`, of a few-shot `seed`.

        They come from the study's file of prompts, if it was given one; or from the first of
        `folders` (the run's and `data/prompts`) that holds just these, unless `train`; else they
        are trained and written to the first folder. As a `control`, "swapped" gives each class
        the name of the next, "shuffled" each picture the class of another; "picture" gives prompts
        to the picture's encoder only, and "text" to the text's only, before its first block alone
        (CoOp, Zhou et al. 2022). A training with a `watch` starts from the beginning.
        """
        if control not in CONTROLS:
            raise ValueError(f"control {control!r} is not {', '.join(CONTROLS[1:])}")
        if self.prompts_file and not control:
            return load_prompts(self.prompts_file)
        config = replace(self.profile.prompts, seed=seed)
        if control in ("picture", "text"):
            depth = 1 if control == "text" else config.depth
            config = replace(config, encoders=control, depth=depth)
        pictures, names, template, run = self._few_shot(spec, config, control)
        folders = list(folders) or [self.folder / "prompts", DATA / "prompts"]

        def learn(unfinished: Path) -> Prompts:
            about = pictures, names, config, template, None if watch else unfinished
            return train_prompts(self.clip, *about, watch=watch)[0]

        files = load_prompts, save_prompts
        return self._learnt(spec, control, seed, run, folders, learn, files, train)

    def lora(self, spec: str, seed: int = 0, folders: Sequence[Path] = ()) -> LoRA:
        """Return LoRA's maps, learnt from the same pictures as `prompts`, and kept as they are: in
        the run's folder or `data/lora`."""
        config = self._tuning(seed)
        pictures, names, template, run = self._few_shot(spec, config)
        folders = list(folders) or [self.folder / "lora", DATA / "lora"]

        def learn(_unfinished: Path) -> LoRA:
            return tune(self.clip, pictures, names, config, template)[0]

        return self._learnt(spec, "", seed, run, folders, learn, (load_lora, save_lora))

    def _tuning(self, seed: int, **constants: Any) -> TuningConfig:
        prompts = self.profile.prompts
        about = dict(shots=prompts.shots, augment=prompts.augment, seed=seed)
        return TuningConfig(**(about | constants))

    def _few_shot(
        self, spec: str, config: PromptsConfig | TuningConfig, control: str = ""
    ) -> tuple[Pictures, tuple[str, ...], str, dict[str, Any]]:
        """The pictures of a task, the names of its base classes, its template, and all that
        decides what is learnt from them."""
        pictures, seed = self.training_pictures(spec), config.seed
        names = pictures.class_names[: base_classes(len(pictures.class_names))]
        if control == "shuffled":
            pictures = with_shuffled_labels(pictures, len(names), config.shots, seed)
        chosen = few_shot(labels_of(pictures), len(names), config.shots, seed)
        names = (*names[1:], names[0]) if control == "swapped" else names
        template = template_of(pictures)
        return pictures, names, template, run_of(self.clip, names, config, template, chosen)

    def _learnt(
        self,
        spec: str,
        control: str,
        seed: int,
        run: dict[str, Any],
        folders: Sequence[Path],
        learn: Callable[[Path], Any],
        files: tuple[Callable[[Path], Any], Callable[[Path, Any], None]],
        train: bool = False,
    ) -> Any:
        """Read what one of the folders holds of this run, else learn it and write it."""
        pictures, (load, save) = self.training_pictures(spec), files
        # which names and numbers of pictures, but not their pixels
        content = "" if world_of(pictures) else pictures_identity(pictures, spec, "train")["hash"]
        words = name_of(spec), content, control, str(seed)
        name = f"{'-'.join(filter(None, words))}.safetensors"
        with artefacts.exclusive(folders[0] / name):
            for path in (folder / name for folder in folders):
                if not train and path.is_file() and (kept := load(path)).config == run:
                    return kept
            unfinished = folders[0] / f".{name}"  # a training that is killed goes on from here
            learnt = learn(unfinished)
            save(folders[0] / name, learnt)
            unfinished.unlink(missing_ok=True)  # a second process may have come first
            return learnt

    def identity(self, **constants: Any) -> dict[str, Any]:
        """Return all that decides an artefact: the profile, CLIP and the training pictures, the
        hash of the autoencoder (`sae=None`: of none), constants, and the tasks (`tasks=True`)."""
        if constants.pop("tasks", False):
            opened = {"train": self.training_pictures, "test": self._tested_pictures}
            for spec, split in product(self.task_specs, opened):
                constants[f"{spec} {split}"] = pictures_identity(opened[split](spec), spec, split)
            file = self.prompts_file and artefacts.sha256(local_path(self.prompts_file))
            constants |= {"prompts": file, "shots": self.profile.prompts.shots}
        spec = self._spec("train")
        _, made_by = self.place(self.training_pictures(spec), spec, "train")
        sae = self.sae_hash if self.which_sae and "sae" not in constants else None
        rules = {"active": ACTIVE, "names": asdict(RULE)}
        return {"profile": asdict(self.loaded), **made_by, "sae": sae, **rules, **constants}

    def keep(self, name: str, obj: Any, **constants: Any) -> None:
        """Write an artefact into the run's folder, with its identity beside it."""
        if isinstance(obj, SAE):
            constants = {"sae": None, **constants}
            about = {"profile": self.profile.name, "clip": self.clip_hash}
            obj = SimpleNamespace(save=partial(save_sae, sae=obj, config=about))
        artefacts.save(self.folder / name, obj, self.identity(**constants))
        artefacts.note("writes", str(self.folder / name))

    def kept(
        self, name: str, made_by: str, read: artefacts.Reader | None = None, **constants: Any
    ) -> Any:
        """Read an artefact of exactly this identity; `made_by` is the notebook that writes it.

        Raises `ArtefactError`, which says what differs and what to run.
        """
        path, identity = self.folder / name, self.identity(**constants)
        artefacts.note_reading(path, made_by)
        return artefacts.load(path, identity, made_by=made_by, read=read)

    def reported(self, name: str) -> pd.DataFrame:
        """Read a table of the paper's own numbers, `data/paper/<name>.csv`."""
        return pd.read_csv(DATA / "paper" / f"{name}.csv", comment="#")

    @property
    def claim(self) -> Callable[..., artefacts.Claim]:
        """Record a claim, and return it: `artefacts.record_claim` in this run's folder."""
        return partial(artefacts.record_claim, self.folder)


def shipped_identity(profile: Profile, clip_hash: str, clip: SplitCLIP) -> dict[str, Any]:
    """Return what must agree before a profile gets the autoencoder in `data/`."""
    sae = {"d_sae": profile.sae.expansion * clip.d_vit, "activation": profile.sae.activation}
    return {"clip": clip_hash, "block": clip.block, **sae}


def executed_cells() -> list[str]:
    """Return the code that the notebook has run so far; none outside a notebook."""
    try:
        return get_ipython().user_ns.get("In", [])  # type: ignore[name-defined]
    except NameError:
        return []
