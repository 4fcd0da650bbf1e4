"""The command line: ``python -m addiffusion_env list | check ID | bench | demo | export RUN ZIP``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from addiffusion_env.config import friendly


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs one verb."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_env", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="every registered name")
    check = verbs.add_parser("check", help="run Gymnasium's and SB3's checkers on an environment id")
    check.add_argument("name", help="for example AdDiffusion-Emoji-v0")
    bench = verbs.add_parser("bench", help="speed of the vector environment beside the bare denoiser loop")
    bench.add_argument("--backbone", default="emoji")
    bench.add_argument("--lanes", type=int, nargs="+", default=[1, 16])
    bench.add_argument("--rounds", type=int, default=7)
    bench.add_argument("--json", type=Path, default=None, help="also write the figures here")
    writer = verbs.add_parser("export", help="write a trained policy as a zip of Stable-Baselines3")
    writer.add_argument("policy", help="a run's or policy's folder, a hub id, or emoji")
    writer.add_argument("zip", type=Path, help="the file to write")
    demo = verbs.add_parser("demo", help="a page in the browser: a policy draws live (needs the extra [demo])")
    demo.add_argument("--policy", default="emoji", help="emoji, or the folder of a run")
    demo.add_argument("--device", default="auto")
    demo.add_argument("--port", type=int, default=7860, help="on 127.0.0.1; 0 takes any free one")
    demo.add_argument("--share", action="store_true", help="also through a public address of Gradio's")
    chosen = parser.parse_args(arguments)
    run = {"list": list_names, "check": check_environment, "bench": run_bench, "demo": run_demo, "export": export}
    friendly(run[chosen.verb])(chosen)


def list_names(_: argparse.Namespace) -> None:
    """Prints every registry with its names."""
    from addiffusion_env import ENVIRONMENTS
    from addiffusion_env.backbones import BACKBONES
    from addiffusion_env.backbones.solvers import SOLVERS
    from addiffusion_env.baselines import BASELINES
    from addiffusion_env.engine.process import REFINE_PRESETS
    from addiffusion_env.prompts import PROMPT_SOURCES
    from addiffusion_env.rewards import TERMS
    from addiffusion_env.rewards.composite import PRESETS
    from addiffusion_env.scorers import SCORERS

    print(f"{'environments':15} {'  '.join(ENVIRONMENTS)}")
    for registry in (BACKBONES, PROMPT_SOURCES, SCORERS, TERMS, SOLVERS, BASELINES):
        print(f"{registry.kind + 's':15} {'  '.join(registry)}")
    print(f"{'reward presets':15} {'  '.join(PRESETS)}")
    print(f"{'refine presets':15} {'  '.join(REFINE_PRESETS)}")
    print("\nmethods, as they are written, and whether they run here:")
    for name in BASELINES:
        kind = BASELINES.load(name)
        needs = kind.needs()
        print(f"  {kind.usage:44} {'no ' if needs else 'yes'} {first_line(kind)}{f' Needs {needs}.' if needs else ''}")


def first_line(kind: type) -> str:
    """The first line of a class's docstring, without markup."""
    return (kind.__doc__ or "").strip().splitlines()[0].replace("`", "")


def check_environment(chosen: argparse.Namespace) -> None:
    """Runs both environment checkers on an id.

    Raises:
        UnknownNameError: for an id that is not registered.
    """
    import gymnasium
    from gymnasium.utils.env_checker import check_env

    from addiffusion_env import ENVIRONMENTS
    from addiffusion_env.agents.checks import check_for_sb3
    from addiffusion_env.errors import unknown

    if chosen.name not in ENVIRONMENTS:
        raise unknown("environment", chosen.name, ENVIRONMENTS)
    env = gymnasium.make(chosen.name).unwrapped
    check_env(env, skip_render_check=True)
    check_for_sb3(env)
    print(f"{chosen.name}: Gymnasium's and Stable-Baselines3's checkers pass")


def run_bench(chosen: argparse.Namespace) -> None:
    """Measures and prints."""
    from addiffusion_env.bench import bench, report

    report([bench(chosen.backbone, lanes, chosen.rounds) for lanes in chosen.lanes], chosen.json)


def export(chosen: argparse.Namespace) -> None:
    """Writes a policy's zip."""
    from addiffusion_env.agents.sb3_zip import export_zip

    path = export_zip(chosen.policy, chosen.zip)
    print(f"{path}: load it with sb3_contrib.MaskablePPO.load, or stable_baselines3.PPO.load if PPO trained it")


def run_demo(chosen: argparse.Namespace) -> None:
    """Serves the demo page until Ctrl-C."""
    from addiffusion_env.demo.app import serve

    serve(chosen.policy, chosen.device, chosen.port, chosen.share)


if __name__ == "__main__":
    main()
