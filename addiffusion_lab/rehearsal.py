"""Rehearses experiment=full at tiny size: the whole night with random weights on the CPU, before it costs anything.

python -m addiffusion_lab.rehearsal sd15 runs/rehearsal           minutes on one core; the same command again resumes
python -m addiffusion_lab.rehearsal sdxl runs/rehearsal_xl rollouts=ray   more settings, as on the command line

It saves a tiny pipeline of the real classes with random weights, tiny scorers in the real file formats and a list of
prompts to the folder, and runs train_sb3.py on them: every stage and every file of the night, no learning to speak of.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from addiffusion_env.config import friendly
from addiffusion_env.errors import ConfigError, unknown
from addiffusion_lab.tiny_pipelines.backbones import BUILDERS, OPTIONS
from addiffusion_lab.tiny_pipelines.parts import tiny_autoencoder
from addiffusion_lab.tiny_pipelines.scorers import scorer_folders

BACKBONES = ("sd15", "sd21", "sdxl", "sd35", "flux", "flux2_klein", "z_image", "qwen_image")
"""The backbones that experiment=full is for."""

SCRIPT = Path(__file__).resolve().parents[1] / "train_sb3.py"

SMALL = (
    "experiment=full",
    "prompt_set=text_file",
    "env.device=cpu",
    "device=cpu",
    "lanes=4",
    "env.steps=4",
    "env.decide_at=[2]",
    "env.early_exit_steps=1",
    "env.refine.return_to=2",
    "night={shortest: 1, short: 2, own: 3, reference: 4, nfe_limit: 4.0, at: 3nfe, images: 6, prompts: 2}",
    "tabular={attempts: 2, held_out: 2, shard_size: 2, lanes: 8, imitate: 64, total_timesteps: 256}",
    "tabular.calibrator={directions: 3, ridge: 10.0}",
    "tabular.ppo={n_steps: 8, batch_size: 32, n_epochs: 1}",
    "report.judges=[sharpness]",  # HPSv2.1 needs its weights
)
"""Settings of a tiny night."""


def rehearse(backbone: str, folder: Path) -> list[str]:
    """Saves the models and the prompts; returns the settings of train_sb3.py that rehearse the night with them.

    Args:
        backbone: one of :data:`BACKBONES`.
        folder: what is in it already is kept, so that a rehearsal can be resumed.

    Raises:
        UnknownNameError: for another backbone.
    """
    if backbone not in BACKBONES:
        raise unknown("backbone", backbone, BACKBONES)
    models = folder / "models"
    if not (models / "complete").exists():
        BUILDERS[backbone](models / "pipeline")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            tiny_autoencoder(16 if backbone == "flux" else 4).save_pretrained(models / "preview")
        for path in scorer_folders(models / "scorers", width=16).values():
            assert Path(path).is_dir()
        (folder / "prompts.txt").write_text("\n".join(prompts()) + "\n", encoding="utf-8")
        (models / "complete").touch()
    options = {"preview": models / "preview", **OPTIONS.get(backbone, {})}
    scorers = {part: models / "scorers" / part for part in ("clip", "image_reward", "dino")}
    return [
        f"backbone={backbone}",
        *SMALL,
        f"run_dir={folder / 'run'}",
        f"env.name_or_path={models / 'pipeline'}",
        f"env.prompt_options.path={folder / 'prompts.txt'}",
        *(f"+env.backbone_options.{name}={_written(value)}" for name, value in options.items()),
        *(f"+env.scorers.{part}={path}" for part, path in scorers.items()),
    ]


def prompts() -> list[str]:
    """Forty-eight prompts of words that the tiny tokenizers know."""
    colours, things, places = (
        ("red", "black", "white", "green"),
        ("cup", "dog", "cat", "sofa"),
        ("", "on a sofa", "and a dog"),
    )
    return [" ".join(filter(None, ("a", *words))) for words in itertools.product(colours, things, places)]


def _written(value: object) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Saves the models and runs the night.

    Raises:
        ConfigError: where there is no train_sb3.py.
    """
    parser = argparse.ArgumentParser(prog="python -m addiffusion_lab.rehearsal", description=__doc__)
    parser.add_argument("backbone", help=", ".join(BACKBONES))
    parser.add_argument("folder", type=Path, help="of the models and of the run")
    parser.add_argument("settings", nargs="*", help="of train_sb3.py")
    chosen = parser.parse_args(arguments)
    if not SCRIPT.is_file():
        raise ConfigError(f"there is no {SCRIPT}", "rehearse in a clone of the repository")
    command = [sys.executable, str(SCRIPT), *rehearse(chosen.backbone, chosen.folder.resolve()), *chosen.settings]
    print(shlex.join(command), flush=True)
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
