"""The gallery: a card for every image of an evaluation, its texts escaped; filtered and sorted in a real browser."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from eval_records import record
from PIL import Image

from addiffusion_env.engine.process import ProcessConfig
from addiffusion_env.evaluation.gallery import LARGEST, ending_of, write_gallery
from addiffusion_env.evaluation.manifest import Manifest, MarginEntry, SamplerEntry, read_manifest, write_manifest
from addiffusion_env.evaluation.runner import EvaluationContext, carry_out, plan
from addiffusion_env.evaluation.store import RecordStore, png_bytes
from addiffusion_env.samplers import make_sampler

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> \"' {{7*7}} </article> a\u202eb"
POLICY = "policy:run@0.01"


class Page(HTMLParser):
    """A page as parsed by a browser."""

    def __init__(self, text):
        super().__init__()
        self.cards, self.tags, self.sources, self.handlers, self.headings = [], [], [], [], []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._heading = tag == "h2"
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "article":
            self.cards.append(dict(attrs))

    def handle_data(self, data):
        if self._heading:
            self.headings.append(data)
            self._heading = False


def manifest_of(records):
    names, ids = (tuple(dict.fromkeys(getattr(one, key) for one in records)) for key in ("sampler", "prompt_id"))
    return Manifest(
        samplers=tuple(SamplerEntry(name, name, {}) for name in names),
        backbone="emoji",
        prompt_ids=ids,
        prompts_digest="0",
        seeds=(0,),
        margins=(MarginEntry(0.01, "2026-01-01T00:00:00+00:00", 0),),
        cost_per_nfe=0.02,
        settings={},
        versions={},
        scorers={"correct": "<b>detector</b>"},
    )


def world(count):
    found = []
    for n in range(count):
        ended = {"last_step": n % 4, "last_checked": True, "probabilities": (0.0, 0.9, 0.1), "correctness": 0.8}
        text = HOSTILE if n == 1 else f"a photo of thing {n}"
        found.append(record(POLICY, n, nfe=3 + n % 4, actions=(n % 2, 1), correct=n % 3 > 0, **ended))
        found.append(record("fixed:8", n, correct=None if n % 2 else True, actions=(0,) * 8, extra={"hps": 0.25}))
        found[-2:] = [with_text(one, text) for one in found[-2:]]
    return found


def with_text(one, text):
    from dataclasses import replace

    return replace(one, prompt=text)


def written(folder, records, kept):
    store = RecordStore(folder / "records")
    store.write(records, {one.uid: png_bytes(np.full(size, 9, np.uint8)) for one, size in kept})
    return write_gallery(folder, store.read(), manifest_of(records), store).read_text(encoding="utf-8")


def test_every_image_has_a_card_and_every_text_is_escaped(tmp_path):
    records = world(6)
    text = written(tmp_path, records, [(records[0], (64, 64, 3)), (records[1], (600, 1200, 3))])
    page = Page(text)
    assert len(page.cards) == len(records) == len(page.headings)
    assert [card["data-sampler"] for card in page.cards] == [POLICY, "fixed:8"] * 6  # side by side, prompt by prompt
    assert [card["data-ending"] for card in page.cards[:4]] == [
        "schedule_accepted",
        "schedule",
        "exit_accepted",
        "schedule",
    ]
    assert page.tags.count("script") == 1 and page.tags.count("img") == 2 and not page.handlers
    assert HOSTILE.replace("\u202e", "\N{REPLACEMENT CHARACTER}") in page.headings
    assert "&lt;b&gt;detector&lt;/b&gt;" in text and "\u202e" not in text
    files = [source for source in page.sources if source != "report.html"]
    assert files == [f"gallery/{records[0].uid}.png"] * 2 + [f"gallery/{records[1].uid}.jpg"] * 2
    with Image.open(tmp_path / files[-1]) as large:
        assert large.size == (LARGEST, LARGEST // 2)
    assert "12 images, 2 of them with their image stored" in text and text.count("not kept") == 10


def test_a_card_says_where_the_policy_stopped_and_why(tmp_path):
    card, other = written(tmp_path, world(1), []).split("<article")[1:]
    assert "early exit" not in card and "whole schedule, image accepted; last decision about the finished image" in card
    assert re.search(r'stop</span><i><b class="stop" style="width:90%"></b></i><em>0\.90', card)
    assert "probability correct</dt><dd>0.80" in card and "&#10007;" not in card and "expected 2 cats" in card
    assert "continue &times;8" in other and "hps</dt><dd>0.250" in other and 'class="bar"' not in other


@pytest.mark.parametrize(
    ("actions", "checked", "ending"),
    [
        ((), None, "none"),
        ((0, 0, 0), False, "schedule"),
        ((0, 1), False, "exit"),
        ((0, 1), None, "exit"),  # a record of before
        ((0, 0, 2), False, "redrawn"),
        ((0, 2, 1, 1), True, "exit_accepted"),
        ((0, 2, 0, 1), True, "schedule_accepted"),
    ],
)
def test_how_an_episode_ended(actions, checked, ending):
    assert ending_of(record(actions=actions, last_checked=checked)) == ending


def test_records_of_a_real_policy_keep_its_last_decision(emoji, scorers, prompts, tmp_path):
    context = EvaluationContext(emoji, scorers, ProcessConfig(steps=2))
    plans = plan([make_sampler("policy:emoji"), make_sampler("fixed:2")], prompts[:2], [0], context)
    write_manifest(tmp_path, plans, "emoji", {}, 0.01, 0.02)
    records = carry_out(plans, context, tmp_path, keep_images=True)
    store = RecordStore(tmp_path / "records")
    assert {one.uid: one for one in store.read()} == {one.uid: one for one in records}
    for one in records[:2]:
        assert sum(one.probabilities) == pytest.approx(1) and 0 < one.correctness < 1
        assert one.actions[-1] == np.argmax(one.probabilities)
        assert one.last_checked == (one.actions[-1] != 0 and one.probabilities[0] == 0)  # nothing left to continue
    for one in records[2:]:
        assert (one.last_step, one.last_checked, one.probabilities, one.correctness) == (1, False, None, None)
    page = Page(write_gallery(tmp_path, records, read_manifest(tmp_path), store).read_text(encoding="utf-8"))
    assert len(page.cards) == page.tags.count("img") == 4
    assert all((tmp_path / source).is_file() for source in page.sources if source.startswith("gallery/"))


@pytest.mark.slow
def test_a_thousand_cards_are_filtered_and_sorted_in_a_browser(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra [dev]")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    records = world(500)
    written(tmp_path, records, [(one, (64, 64, 3)) for one in records[:20]])
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-quic"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        outside = []
        page.on("request", lambda request: outside.append(request.url))
        page.on("dialog", lambda dialog: outside.append(f"dialog {dialog.message}"))
        page.goto((tmp_path / "gallery.html").as_uri())
        shown, count = page.locator("article:visible"), page.locator("output")
        assert count.inner_text() == "20 of 1000 images"  # those with a picture
        page.uncheck("[name=pictures]")
        assert count.inner_text() == "1000 of 1000 images"
        page.fill("[name=prompt]", "THING 49")
        page.select_option("[name=sampler]", POLICY)
        assert count.inner_text() == "11 of 1000 images"  # 49 and 490 to 499
        page.select_option("[name=sort]", "-nfe")
        nfe = [float(text) for text in shown.locator("dd:nth-of-type(1)").all_text_contents()]
        assert len(nfe) == 11 and nfe == sorted(nfe, reverse=True) and len(set(nfe)) == 4
        page.select_option("[name=ending]", "exit_accepted")
        page.select_option("[name=verdict]", "wrong")
        wanted = [n for n in (49, *range(490, 500)) if n % 2 and n % 3 == 0]
        assert count.inner_text() == f"{len(wanted)} of 1000 images"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.reload()  # the address keeps the choice
        assert count.inner_text() == f"{len(wanted)} of 1000 images"
        browser.close()
    assert all(url.startswith("file://") for url in outside)
