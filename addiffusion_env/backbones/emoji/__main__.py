"""``python -m addiffusion_env.backbones.emoji`` verifies and prints the manifest; ``--write`` rewrites it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from addiffusion_env.backbones.emoji import WEIGHTS, check, read_manifest, write_manifest
from addiffusion_env.config import friendly


@friendly
def main(arguments: Sequence[str] | None = None) -> None:
    """Verifies a folder of weights and prints its manifest, or rewrites the manifest."""
    parser = argparse.ArgumentParser(prog="python -m addiffusion_env.backbones.emoji", description=main.__doc__)
    parser.add_argument("folder", nargs="?", default=WEIGHTS, type=Path, help="folder of weights (the shipped ones)")
    parser.add_argument("--write", action="store_true", help="rewrite the manifest from the present files")
    options = parser.parse_args(arguments)
    entries = write_manifest(options.folder) if options.write else read_manifest(options.folder)
    for name, entry in entries.items():
        check(options.folder, name)
        size = sum(file["bytes"] for file in entry["files"].values())
        print(f"{name:<14}{size / 1e6:6.2f} MB  {entry['loaded_by']}: {entry['made']}")


if __name__ == "__main__":
    main()
