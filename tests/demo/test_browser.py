"""The demo in a real browser: a prompt typed, the button pressed, the filmstrip and the figures awaited."""

import re
import shutil

import pytest

from addiffusion_env import AdaptivePipeline
from addiffusion_env.__main__ import main
from addiffusion_env.errors import ConfigError, MissingPackageError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOADED = "(nodes) => nodes.every((image) => image.complete && image.naturalWidth >= 128)"


@pytest.fixture(scope="module")
def served():
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    from addiffusion_lab.demo.app import serve

    server = serve("emoji", port=0, block=False)
    yield server
    server.blocks.close()


@pytest.fixture(scope="module")
def page(served):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra [dev]")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-quic"])
        opened = browser.new_page(viewport={"width": 1280, "height": 960})
        opened.outside = []
        opened.on("request", lambda request: opened.outside.append(request.url))
        opened.on("dialog", lambda dialog: opened.outside.append(f"dialog {dialog.message}"))
        opened.goto(served.url)
        yield opened
        browser.close()


@pytest.mark.slow
def test_a_prompt_is_drawn_in_the_browser(page, served, tmp_path):
    page.fill("#prompt textarea", "a photo of an elephant left of a giraffe")
    page.click("#draw")
    page.wait_for_selector('#stage .ad-card[data-sampler="fixed:50"]:not(.ad-working)', timeout=300_000)
    stage = page.locator("#stage")
    figures = [text for text in stage.locator(".ad-card .ad-nfe").all_inner_texts()]
    drawn = AdaptivePipeline.from_pretrained("emoji")("a photo of an elephant left of a giraffe", seeds=0)
    assert figures[0] == f"{drawn.nfe[0]:g} NFE" and figures[2] == "50 NFE"
    assert all(
        re.fullmatch(r"\d+\.\d\d s", text) for text in stage.locator(".ad-cost span:last-child").all_inner_texts()
    )
    assert stage.locator(".ad-film .ad-cell").count() == len(drawn.actions[0]) + 1
    assert "as asked" in stage.locator('[data-sampler="policy"]').inner_text()
    assert stage.locator("img").count() >= 5 and stage.locator("img").evaluate_all(LOADED)
    shot = page.screenshot(path=str(tmp_path / "demo.png"), full_page=True)
    assert len(shot) > 20_000
    local = ("data:", "blob:", served.url.rstrip("/"))
    assert [url for url in page.outside if not url.startswith(local)] == []  # nothing leaves this machine


@pytest.mark.slow
def test_what_is_asked_for_meanwhile_is_drawn_next(page):
    for text in ("a photo of a dog", "a photo of two cups"):
        page.fill("#prompt textarea", text)
        page.click("#draw")
        page.wait_for_timeout(500)
    page.wait_for_function("document.querySelector('#stage q')?.innerText.includes('cups')", timeout=300_000)
    page.wait_for_selector('#stage .ad-card[data-sampler="fixed:50"]:not(.ad-working)', timeout=300_000)


@pytest.mark.slow
def test_a_hostile_prompt_is_shown_as_text(page):
    hostile = "<b onclick=1>${1}{{x}}"
    page.fill("#prompt textarea", hostile)
    page.click("#draw")
    page.wait_for_selector(f"#stage q:has-text({hostile!r})", timeout=120_000)
    assert page.locator("#stage q").first.inner_text().strip('“”"') == hostile
    assert page.locator("#stage b[onclick]").count() == 0
    assert not [url for url in page.outside if url.startswith("dialog")]


@pytest.mark.slow
def test_a_taken_port_is_said(served):
    from addiffusion_lab.demo.app import serve

    with pytest.raises(ConfigError, match="cannot be used"):
        serve("emoji", port=int(served.url.rstrip("/").rpartition(":")[2]), block=False)


def test_the_command_line_refuses_an_unknown_policy(capsys):
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    with pytest.raises(SystemExit):
        main(["demo", "--policy", "emojy"])
    assert "did you mean 'emoji'" in capsys.readouterr().err


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_that_cannot_be_is_refused_before_anything_is_loaded(port):
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    from addiffusion_lab.demo.app import serve

    with pytest.raises(ConfigError, match=f"must be from 0 to 65535, got {port}"):
        serve("emoji", port=port, block=False)


def test_without_gradio_the_extra_is_named(monkeypatch):
    import sys

    from addiffusion_lab.demo.app import serve

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingPackageError, match=r"addiffusion-env\[demo\]"):
        serve("emoji", port=0, block=False)
