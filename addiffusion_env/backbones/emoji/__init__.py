"""The emoji world's backbone, a small Stable Diffusion, and its weights, which ship with the package.

``weights/manifest.json`` lists the components with the sha256 of every file. A component is verified when it is first
loaded in a process (36 MB in all, at most 0.08 s), so that a truncated download or an edited file raises an error with
a remedy instead of yielding a model that draws noise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from addiffusion_env.backbones import Traits
from addiffusion_env.backbones.base import Capabilities, Load
from addiffusion_env.backbones.devices import quiet_loading, resolve_device, resolve_dtype, without_triton
from addiffusion_env.backbones.stable_diffusion import StableDiffusionBackbone, StableDiffusionParts
from addiffusion_env.errors import ConfigError, WeightsError, nearest, unknown

if TYPE_CHECKING:
    from addiffusion_env.backbones.openvino import OpenVino

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights."""

MANIFEST = "manifest.json"
"""File in it that lists every component with the sha256 of its files."""

OPTIONS = ("truncate_prompts", "engine")

SCORERS_ON = {
    "float32": "addiffusion_env.scorers.emoji:OpenVinoScorers",
    "bfloat16": "addiffusion_env.scorers.emoji:Bfloat16OpenVinoScorers",
}
"""Precision of the engine OpenVINO -> the scorers in it."""


class EmojiBackbone(StableDiffusionBackbone):
    """Emoji world: 64x64 images of up to four emoji, SD 1.5's architecture at small scale, no download.

    Trained from scratch by ``python -m addiffusion_lab.emoji_training``; ``weights/manifest.json`` has the details.
    """

    name = "emoji"
    not_identity = ("traits",)
    traits = Traits(
        prompts="emoji",
        prompt_reader="addiffusion_env.prompts.emoji_grammar:emoji_prompt",
        scorers="addiffusion_env.scorers.emoji:EmojiScorers",
        preference="emoji_preference",
        judges=("emoji_detector",),
        world="emoji",
        embedded=True,
        policy="emoji_rule",
        guide="addiffusion_env.backbones.emoji.guide:EmojiGuide",
    )

    @classmethod
    def from_pretrained(cls, load: Load | None = None) -> EmojiBackbone:
        """Loads the shipped weights, checking each file's sha256, or a folder of the same layout.

        Options: ``truncate_prompts``, and ``engine="openvino"``, which runs the UNet, both decoders and the scorers'
        image networks on OpenVINO, in ``dtype``, instead of torch.

        Raises:
            WeightsError: for a missing or corrupted file.
            UnknownNameError: for an unknown engine.
            ConfigError: for an option that this backbone does not have, or a dtype or device that the engine lacks.
            MissingPackageError: when the engine is not installed.
        """
        with without_triton():
            from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        load = load or Load()
        for option in load.options:
            if option not in OPTIONS:
                raise ConfigError(f"the emoji backbone has no option {option!r}", nearest(option, OPTIONS))
        folder = WEIGHTS if load.name_or_path is None else load.name_or_path
        engine: OpenVino | None = None
        if load.options.get("engine", "torch") != "torch":
            from addiffusion_env.backbones.openvino import engine_of

            engine = engine_of(load)
        device = resolve_device("cpu" if engine else load.device)
        dtype = torch.float32 if engine else resolve_dtype(load.dtype, device)

        def model(kind: type, component: str) -> torch.nn.Module:
            return kind.from_pretrained(verify(folder, component), torch_dtype=dtype).to(device)  # type: ignore[attr-defined]

        with quiet_loading():
            parts = StableDiffusionParts(
                unet=model(UNet2DConditionModel, "unet"),
                vae=model(AutoencoderKL, "vae"),
                text_encoder=model(CLIPTextModel, "text_encoder"),
                tokenizer=CLIPTokenizer.from_pretrained(verify(folder, "tokenizer")),
                scheduler=DDIMScheduler.from_pretrained(verify(folder, "scheduler")),
                preview=model(AutoencoderTiny, "preview"),
            )
        capabilities = Capabilities(
            latent_shape=(4, 16, 16),
            image_size=(64, 64),
            preview_size=(64, 64),
            guidance=True,
            attention_grid=(16, 16),
            max_tokens=32,
            default_steps=20,
            default_guidance=4.0,
            default_solver="ddim",
            default_spacing="trailing",
        )
        if device.type == "cpu":
            # CPU time on an AVX2 core, channels-last and otherwise: preview 8.0 and 10.4 ms, decode 29 and 33 ms, UNet
            # 35 and 35 ms, since half of its time goes into attention and its linear layers.
            for part in (parts.unet, parts.vae, parts.preview):
                part.to(memory_format=torch.channels_last)
        made = cls(parts, capabilities, bool(load.options.get("truncate_prompts", False)))
        if engine is not None:
            made._run_on(engine)
        return made

    def _run_on(self, engine: OpenVino) -> None:
        """Runs all but the text encoder on an engine from now on; converts the networks."""
        self.engine = engine
        self.traits = replace(self.traits, scorers=SCORERS_ON[engine.dtype])  # type: ignore[misc]
        x0 = torch.zeros(1, *self.capabilities.latent_shape)
        self.predict(x0, torch.ones(1, dtype=torch.float64), self.encode([""]), torch.ones(1, dtype=torch.float64))
        self.preview(x0)
        self.decode(x0)


# ------------------------------------------------------------------------------------------------ shipped weights


@dataclass(frozen=True)
class Component:
    """One model (or table) of the emoji world.

    Attributes:
        stage: the training stage that produces it; empty if there is none.
        loaded_by: the class that loads its folder.
        made: how the shipped files were produced.
        licence: SPDX expression.
        folder: its path, relative to the folder of weights.
    """

    stage: str
    loaded_by: str
    made: str
    licence: str = "Apache-2.0"
    folder: str = ""


_UNET_MADE = "epsilon prediction, min-SNR weights, AdamW, EMA; batch 1024 over 600,000 scenes, 800 s on one H100"

COMPONENTS: Mapping[str, Component] = {
    "tokenizer": Component("tokenizer", "transformers.CLIPTokenizer", "word-level BPE over the grammar's own words"),
    "scheduler": Component("unet", "diffusers.DDIMScheduler", "Stable Diffusion 1.5's noise schedule"),
    "unet": Component("unet", "diffusers.UNet2DConditionModel", _UNET_MADE),
    "text_encoder": Component("unet", "transformers.CLIPTextModel", "trained together with the UNet"),
    "vae": Component(
        "vae_decoder",
        "diffusers.AutoencoderKL",
        "stage vae for 130 s, then stage vae_decoder for 150 s with the encoder frozen; one H100",
    ),
    "preview": Component("preview", "diffusers.AutoencoderTiny", "distilled from the VAE; takes scaled latents"),
    "clip": Component("clip", "open_clip.model.CLIP", "contrastive on rendered scenes and prompts, 200 s on one H100"),
    "dino": Component("dino", "transformers.Dinov2Model", "self-distillation on rendered scenes, no prompts"),
    "image_reward": Component(
        "preference",
        "transformers.BlipForImageTextRetrieval",
        "ranked on hard negatives, 100 s on one H100; score = logit 1 - logit 0, standardised by its config",
    ),
    "objects": Component(
        "objects",
        "addiffusion_env.scorers.emoji.EmojiPreferenceScorer",
        "4,500 steps of 48 pictures on one CPU core, in four runs: renders, and 3,072 that the denoiser redrew, 600 of "
        "which were dropped on the way since their labels did not hold; its config joins rule and image_reward",
    ),
    "detector_a": Component(
        "detector", "addiffusion_env.backbones.emoji.detector.Detector", "centre points, on rendered scenes"
    ),
    "sprites": Component(
        "",
        "addiffusion_lab.emoji_training.renderer.Renderer",
        "renderer.build_sprites: 32x32 pixels, from Noto Color Emoji (images Apache-2.0, font OFL-1.1)",
        licence="Apache-2.0 AND OFL-1.1",
        folder="../assets",
    ),
}

_verified: dict[tuple[Path, str], Path] = {}  # components that this process has verified; failures are never cached


def verify(folder: str | Path, component: str) -> Path:
    """Checks every file of ``component`` against the manifest, once per process; returns the component's folder.

    Args:
        folder: a folder of weights: ``WEIGHTS``, or one written by the training stages.
        component: its name in the manifest: ``"unet"``, ``"detector_a"`` ...

    Raises:
        UnknownNameError: when the manifest does not list ``component``.
        WeightsError: when the manifest or a file is missing, unreadable or has different content.
    """
    key = (Path(folder).resolve(), component)
    if key not in _verified:
        _verified[key] = check(*key)
    return _verified[key]


def check(folder: Path, component: str) -> Path:
    """Like :func:`verify`, without caching."""
    folder = folder.resolve()
    entries = read_manifest(folder)
    if component not in entries:
        raise unknown("component of the emoji weights", component, entries)
    entry = entries[component]
    root = (folder / entry["folder"]).resolve()
    for name, expected in entry["files"].items():
        _check_file(root / name, expected, _remedy(folder, component))
    return root


def _remedy(folder: Path, component: str) -> str:
    """What to do when files of ``component`` are missing or broken."""
    shipped = folder == WEIGHTS.resolve()
    again = "reinstall addiffusion-env" if shipped else "copy the folder again"
    stage = COMPONENTS[component].stage if component in COMPONENTS else ""
    if not stage:
        return again
    return f"{again}, or train it again: python -m addiffusion_lab.emoji_training {stage} --out {folder}"


def _check_file(path: Path, expected: Mapping[str, Any], remedy: str) -> None:
    try:
        size = path.stat().st_size
        # Size first: it distinguishes a truncated copy from an edited one, and avoids hashing it.
        if size != expected["bytes"]:
            cause = f"{path} is corrupted: {size} bytes, expected {expected['bytes']}"
            raise WeightsError(cause, remedy)
        digest = _sha256(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing, expected a file of {expected['bytes']} bytes", remedy) from error
    except OSError as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} cannot be read: {error.strerror}", remedy) from error
    if digest != expected["sha256"]:
        raise WeightsError(f"{path} is corrupted: sha256 {digest}, expected {expected['sha256']}", remedy)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(folder: str | Path = WEIGHTS) -> dict[str, dict[str, Any]]:
    """The manifest's components: name -> ``folder``, ``files`` (name -> ``sha256``, ``bytes``) and provenance.

    Raises:
        WeightsError: when the manifest is missing or invalid.
    """
    path = Path(folder) / MANIFEST
    remedy = f"python -m addiffusion_env.backbones.emoji {folder} --write, if you trust the files there"
    if Path(folder).resolve() == WEIGHTS.resolve():
        remedy = "reinstall addiffusion-env"
    try:
        components = json.loads(path.read_text(encoding="utf-8"))["components"]
        for entry in components.values():
            entry["folder"], entry["files"].items()
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: not a folder of emoji weights", remedy) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", remedy) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a valid manifest: {type(error).__name__}: {error}", remedy) from error
    return components


def write_manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Writes a manifest of every component found in ``folder``, with the current hashes of its files.

    Returns:
        The components, as :func:`read_manifest` returns them.
    """
    root = Path(folder).resolve()
    components = {}
    for name, component in COMPONENTS.items():
        if component.folder and root != WEIGHTS.resolve():
            continue  # the sprites belong to the package, not to a folder of trained weights
        place = component.folder or name
        files = sorted(path for path in (root / place).glob("**/*") if path.is_file())
        if files:
            listed = {
                path.relative_to(root / place).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in files
            }
            components[name] = asdict(component) | {"folder": place, "files": listed}
    text = json.dumps({"format": 1, "components": components}, indent=2, ensure_ascii=False)
    (root / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for key in [key for key in _verified if key[0] == root]:
        del _verified[key]
    return components
