"""Pictures of the documentation that show a page in a browser. Needs the extras [demo] and [dev], and Chromium.

python -m addiffusion_lab.pictures docs/demo.png                        the demo of the shipped policy
python -m addiffusion_lab.pictures docs/demo_pipe.png --pipe FOLDER     the demo of a pipeline
python -m addiffusion_lab.pictures docs/gallery.png --page runs/eval/gallery.html
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from addiffusion_env.config import friendly
from addiffusion_env.errors import ConfigError, MissingPackageError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
PROMPT = "a photo of an elephant left of a giraffe"
MINUTES = 10
"""Longest wait for a page."""
COLOURS = 128
"""Colours of a picture's palette, so that it is small."""


def take(shown: argparse.Namespace) -> None:
    """Takes one picture.

    Raises:
        ConfigError: for options that do not go together.
        MissingPackageError: without playwright or a browser.
    """
    if shown.page is not None and (shown.pipe is not None or shown.prompt is not None):
        raise ConfigError("--page shows a file, and --pipe or --prompt is about the demo", "give one or the other")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingPackageError(f"no playwright: {error}", "pip install 'addiffusion-env[dev]'") from error
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise MissingPackageError(f"no browser: none of {', '.join(BROWSERS)}", "apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[f"--{flag}" for flag in FLAGS.split()])
        opened = browser.new_page(viewport={"width": shown.width, "height": shown.height})
        opened.set_default_timeout(MINUTES * 60_000)
        if shown.page is not None:
            opened.goto(shown.page.resolve().as_uri())
            opened.screenshot(path=shown.out)
        else:
            show_demo(opened, shown.pipe, shown.prompt or PROMPT, shown.out)
        browser.close()
    with Image.open(shown.out) as picture:
        picture.convert("RGB").quantize(COLOURS).save(shown.out, optimize=True)
    print(f"{shown.out}: {shown.out.stat().st_size / 1000:.0f} kB")


def show_demo(opened: Any, pipe: str | None, prompt: str, out: Path) -> None:
    """Serves the demo, draws a prompt on its page, and takes the picture when every image is finished."""
    from addiffusion_lab.demo.app import serve

    served = serve(port=0, block=False, pipe=pipe)
    opened.goto(served.url)
    opened.fill("#prompt textarea", prompt)
    opened.click("#draw")
    opened.wait_for_selector("#stage .ad-card:last-child:not(.ad-working):not(.ad-waiting)")
    opened.wait_for_function("!document.querySelector('#stage .ad-working, #stage .ad-waiting')")
    opened.screenshot(path=out, full_page=True)
    served.blocks.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--page", type=Path, help="an HTML file, in place of the demo")
    parser.add_argument("--pipe", help="see python -m addiffusion_env demo --pipe")
    parser.add_argument("--prompt", help=f"default: {PROMPT}")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=760)
    friendly(take)(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
