"""The command line: ``python -m addiffusion_env list | check NAME | calibrate MODEL | bench | demo | export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from addiffusion_env.config import friendly
from addiffusion_env.plugins import load_plugins


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs one command."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_env", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="list all registered components, and whether they run here")
    checking = verbs.add_parser("check", help="check a component against the contracts of its kind")
    checking.add_argument("name", nargs="?", help="for example AdDiffusion-Emoji-v2, sd15, clip, nfe_cost or fixed:8")
    checking.add_argument("--pipelines", action="store_true", help="measure every tiny diffusers pipeline, or NAME")
    checking.add_argument("--out", type=Path, help="with --pipelines: the Markdown file to write")
    for verb in (listing, checking):
        verb.add_argument(
            "--plugins",
            "--package",
            nargs="+",
            action="extend",
            default=[],
            help="modules to import first, which register further components",
        )
    speed = verbs.add_parser(
        "bench", help="measure the speed of every mode of execution, and of the bare denoiser loop"
    )
    speed.add_argument("--backbone", default="emoji")
    speed.add_argument(
        "--load",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="how to load it, in the words of eval_sb3.py's env: dtype=bfloat16 backbone_options.engine=openvino",
    )
    speed.add_argument("--against", type=Path, help="another checkout of the project, measured in turn with this one")
    speed.add_argument(
        "--instant", action="store_true", help="networks that return at once: only the Python around them is measured"
    )
    lab("bench.arguments").add_arguments(speed)
    calibrating = verbs.add_parser(
        "calibrate", help="make a policy for a pipeline in minutes, without labels or training"
    )
    calibrating.add_argument("model", help="emoji, sd15 ..., or the folder or hub id of a diffusers pipeline")
    calibrating.add_argument(
        "--prompts", type=Path, help="a text file, one prompt in each line; default: the backbone's"
    )
    calibrating.add_argument("--minutes", type=float, default=10.0, help="of recording, with the report")
    calibrating.add_argument("--out", type=Path, default=Path("runs/calibration"), help="folder of policy and report")
    calibrating.add_argument("--steps", type=int, help="of the schedule; default: the pipeline's own")
    calibrating.add_argument("--attempts", type=int, default=4, help="of each prompt")
    calibrating.add_argument("--lanes", type=int, default=16, help="images at once")
    calibrating.add_argument("--report-images", type=int, default=6, help="prompts that the report shows")
    calibrating.add_argument("--push-to-hub", metavar="OWNER/NAME", help="also upload the policy")
    calibrating.add_argument("--plan", action="store_true", help="measure this machine, print the cost, and stop")
    writer = verbs.add_parser("export", help="write a trained policy as a zip of Stable-Baselines3")
    writer.add_argument("policy", help="a run's or policy's folder, a hub id, or emoji")
    writer.add_argument("zip", type=Path, help="the file to write")
    site = verbs.add_parser("demo", help="serve a web page on which a policy generates images (needs the extra [demo])")
    site.add_argument("--pipe", help="folder or hub id of any diffusers pipeline, beside fixed steps; or sd15 ...")
    site.add_argument(
        "--policy", help="a run's or calibration's folder, a hub id or emoji; default: emoji, or with --pipe untrained"
    )
    site.add_argument("--device", default="auto")
    site.add_argument("--port", type=int, default=7860, help="on 127.0.0.1; 0 takes any free one")
    site.add_argument("--share", action="store_true", help="also serve it at a public Gradio address")
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words:  # the whole help, not only argparse's error
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    chosen = parser.parse_args(words)
    run = {"list": list_names, "check": check, "calibrate": calibrate, "bench": bench, "demo": demo, "export": export}
    friendly(run[chosen.verb])(chosen)


def list_names(chosen: argparse.Namespace) -> None:
    """Prints all registered components, one per line, and whether they run on this machine."""
    from addiffusion_env.catalogue import catalogue, lines

    lab()
    load_plugins(chosen.plugins, "--plugins")
    print("yes: runs on this machine; no: needs what its line names")
    for line in lines(catalogue()):
        print(line)


def check(chosen: argparse.Namespace) -> None:
    """Checks a component against the contracts of its kind, or measures the tiny pipelines.

    Raises:
        ConfigError: without a name, or for ``--out`` without ``--pipelines``.
        UnknownNameError: for a name that is not registered.
        ContractError: for the first contract that is violated.
        WeightsError: if weights are missing; names the command that downloads them.
    """
    from addiffusion_env.checks.components import find
    from addiffusion_env.errors import ConfigError

    lab()
    load_plugins(chosen.plugins, "--plugins")
    if chosen.pipelines:
        text = lab("tiny_pipelines.page").measure_all(chosen.name)
        if chosen.out is None:
            print(text)
        else:
            chosen.out.write_text(text, encoding="utf-8")
        return
    if chosen.name is None or chosen.out is not None:
        cause = "check needs a name" if chosen.name is None else "--out goes with --pipelines"
        raise ConfigError(cause, "python -m addiffusion_env check NAME, or check --pipelines [NAME] [--out FILE]")
    for found in find(chosen.name):
        print(f"{found.kind} {chosen.name}{f' ({found.how})' if found.how else ''}", flush=True)
        for promise in found.run():
            print(f"  holds: {promise}", flush=True)


def lab(module: str = "") -> Any:
    """Imports ``addiffusion_lab``, or a module of it. Only commands may: the library does not depend on it.

    Raises:
        ConfigError: if it is not installed.
    """
    from importlib import import_module

    from addiffusion_env.errors import ConfigError

    try:
        return import_module(f"addiffusion_lab.{module}".rstrip("."))
    except ModuleNotFoundError as error:
        raise ConfigError(f"this command needs addiffusion_lab: {error}", "install the whole repository") from error


def bench(chosen: argparse.Namespace) -> None:
    """Measures and prints the speed of a backbone."""
    lab("bench.cli").run_named(chosen)


def calibrate(chosen: argparse.Namespace) -> None:
    """Calibrates a pipeline, or prints what that costs."""
    from addiffusion_env.calibration import calibrate as calibration
    from addiffusion_env.evaluation.cost import RunCost

    made = calibration.calibrate(
        chosen.model,
        chosen.prompts,
        chosen.minutes,
        chosen.out,
        attempts=chosen.attempts,
        lanes=chosen.lanes,
        report_images=chosen.report_images,
        push_to_hub=chosen.push_to_hub,
        plan=chosen.plan,
        **({} if chosen.steps is None else {"steps": chosen.steps}),
    )
    if isinstance(made, RunCost):
        print(made.table())
        return
    print(f"policy: {made.folder}, from {made.prompts} recorded images; report: {made.report}", made.url, sep="\n")


def export(chosen: argparse.Namespace) -> None:
    """Writes a policy as a zip of Stable-Baselines3."""
    from addiffusion_env.agents.sb3_zip import export_zip

    path = export_zip(chosen.policy, chosen.zip)
    print(f"{path}: load it with the class that trained it, for example sb3_contrib.MaskablePPO.load")


def demo(chosen: argparse.Namespace) -> None:
    """Serves the demo page until Ctrl-C."""
    lab("demo.app").serve(chosen.policy, chosen.device, chosen.port, chosen.share, pipe=chosen.pipe)


if __name__ == "__main__":
    main()
