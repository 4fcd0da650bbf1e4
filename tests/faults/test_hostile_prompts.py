"""Prompts are data: no prompt is interpreted as markup, a path, a terminal sequence or a shell command."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from addiffusion_env.envs.rendering import render_frame
from addiffusion_env.errors import PromptError
from addiffusion_env.evaluation.filmstrips import Filmstrip
from addiffusion_env.evaluation.records import Record, uid_of
from addiffusion_env.evaluation.rendering import to_html, to_markdown
from addiffusion_env.evaluation.sections import Section, Table, sections
from addiffusion_env.evaluation.store import RecordStore
from addiffusion_env.prompts import Prompt, TextFilePrompts
from addiffusion_lab.benchmarks.export import export

HOSTILE = [
    "<script>alert('x')</script><img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)> </td></table>',
    "[click](javascript:alert(1)) ![](http://evil/x.png) | a | b |",
    "../../../../etc/passwd",
    "/etc/cron.d/x; rm -rf ~ $(reboot) `reboot` && :",
    "C:\\Windows\\..\\x \\\\server\\share",
    "\x00\x1b[2J\x1b]0;title\x07\x9b31m\r\n\t",
    "a \N{RIGHT-TO-LEFT OVERRIDE}dog\N{POP DIRECTIONAL FORMATTING} \N{ZERO WIDTH SPACE}",
    "CON" + "." * 300,
    "x" * 100_000,
    "<b>" * 30_000,
    "\N{DOG FACE}" * 5_000,
    "%s {} {0.__class__} ${jndi:ldap://x} #{7*7}",
]
HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Page(HTMLParser):
    """A page as parsed by a browser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def record(prompt: str, number: int, sampler: str) -> Record:
    return Record(
        uid=uid_of(sampler, f"p{number}", 0),
        variant=sampler,
        sampler=sampler,
        backbone="emoji",
        prompt=prompt,
        prompt_id=f"p{number}",
        task="prompt",
        constraints=1,
        seed=0,
        nfe=2.0,
        network_calls=4,
        decisions=2,
        actions=(0, 1),
        refinements=0,
        preference=float(number),
        clip_score=0.2,
        correct=number % 2 == 0,
        reason=f"expected {prompt}",
        seconds=0.1,
    )


def filmstrip(uid: str, role: str) -> Filmstrip:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return Filmstrip(uid, "policy:x", role, (buffer.getvalue(),) * 2, (0, 1), (float("nan"), 0.5))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    samplers = ("policy:x", "fixed:2")
    return [record(text, number, sampler) for sampler in samplers for number, text in enumerate(HOSTILE)]


@pytest.fixture(scope="module")
def written(records: list[Record]) -> list[Section]:
    """A report in which every text is external; every prompt has a filmstrip."""
    from addiffusion_env.evaluation.manifest import Manifest, MarginEntry, SamplerEntry
    from addiffusion_env.evaluation.summary import summarise

    manifest = Manifest(
        samplers=tuple(SamplerEntry(name, name, {"steps": 2}) for name in ("policy:x", "fixed:2")),
        backbone="emoji",
        prompt_ids=tuple(f"p{number}" for number in range(len(HOSTILE))),
        prompts_digest="0",
        seeds=(0,),
        margins=(MarginEntry(0.01, "2026-01-01", 0),),
        cost_per_nfe=0.02,
        settings={"prompt_options": {"texts": HOSTILE}, HOSTILE[0]: HOSTILE[6]},
        versions={},
    )
    filmstrips = [filmstrip(found.uid, "best") for found in records[: len(HOSTILE)]]
    return sections(records, summarise(records, manifest), manifest, filmstrips, {"frontier", "frontier_seconds"})


def stems(written: list[Section]) -> dict[str, bytes]:
    parts = [part for section in written for part in section.parts]
    cells = [cell for part in parts if isinstance(part, Table) for row in part.rows for cell in row]
    return {part.stem: filmstrip("u", "best").frames[0] for part in [*parts, *cells] if hasattr(part, "stem")}


def test_a_report_shows_hostile_prompts_as_text(written: list[Section]) -> None:
    text = to_html(HOSTILE[0], written, stems(written))
    page = Page(text)
    plain = Page(to_html("t", [Section(part.title) for part in written], {}))
    known = {*plain.tags, "p", "div", "table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption"}
    assert set(page.tags) <= known and not page.handlers
    assert page.tags.count("img") == len(stems(written)) >= len(HOSTILE)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert "&lt;script&gt;" in text and not HIDDEN.search(text)
    assert len(text) < 200_000, "a long prompt is cut where it is shown"
    text.encode()


def test_markdown_shows_hostile_prompts_as_text(written: list[Section]) -> None:
    table = Table(("prompt",), tuple((text[:500],) for text in HOSTILE))
    text = to_markdown(HOSTILE[2], [*written, Section("All", (table,))])
    assert not HIDDEN.search(text)
    assert not re.search(r"(?<!\\)<", text), "no tag"
    assert not re.search(r"(?<!\\)\]\(", text.replace("](plots/", "")), "no link"
    rows = [line for line in text.split("\n## All\n")[1].splitlines() if line.startswith("|")]
    assert len(rows) == len(HOSTILE) + 2 and all(len(re.findall(r"(?<!\\)\|", row)) == 2 for row in rows)


def test_records_keep_hostile_prompts_as_they_are(records: list[Record], tmp_path) -> None:
    store = RecordStore(tmp_path / "records")
    store.write(records)
    assert {found.uid: found.prompt for found in store.read()} == {made.uid: made.prompt for made in records}
    assert [path.parent for path in tmp_path.rglob("*.parquet")] == [tmp_path / "records"]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_frames_draw_hostile_prompts(number: int) -> None:
    """The text is drawn in its area and changes no other pixels."""
    image, text = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), HOSTILE[number]
    frame, plain = (render_frame(image, [0, 2, 1], 3.5, words) for words in (text, ""))
    np.testing.assert_array_equal(frame[:270], plain[:270])  # preview and action squares
    assert (frame[270:] != plain[270:]).any()
    np.testing.assert_array_equal(frame, render_frame(image, [0, 2, 1], 3.5, text[:40]))  # cut to the frame


def test_a_prompt_file_of_hostile_lines_gives_them_as_text(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(HOSTILE), encoding="utf-8")
    found = [prompt.text for prompt in TextFilePrompts(path)]
    assert set(found) >= {text for text in HOSTILE if text.strip() == text and not HIDDEN.search(text)}
    assert all(re.fullmatch(r"text-[0-9a-f]{16}", Prompt.of(text).prompt_id) for text in HOSTILE)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(PromptError, match="surrogate"):
        Prompt.of("a \ud83d dog")


@pytest.mark.parametrize("benchmark", ["geneval", "t2i_compbench"])
def test_an_export_stays_in_its_folder(benchmark: str, tmp_path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    refused = 0
    for number, text in enumerate(HOSTILE):
        entry = {"tag": "single_object", "include": [], "prompt": text, "index": number}
        prompt = Prompt(text, f"{benchmark}-{number}", "single_object", metadata=entry)
        try:
            export(benchmark, [(prompt, [buffer.getvalue()])], tmp_path / benchmark / str(number))
        except PromptError:
            refused += 1
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.parts[0] == benchmark for path in files)
    assert len(files) + refused >= len(HOSTILE) and not any(HIDDEN.search(str(path)) for path in files)
    for path in files:
        if path.name == "metadata.jsonl":
            assert json.loads((tmp_path / path).read_text())["prompt"] in HOSTILE


def test_tensorboard_gets_no_prompt(tmp_path) -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import configure

    from addiffusion_env.agents.callbacks import EpisodeLog

    logger = configure(str(tmp_path), ["tensorboard"])
    log = EpisodeLog({"env.prompts": HOSTILE, "run_dir": HOSTILE[0]})
    env = make_vec_env("CartPole-v1")
    log.model = type("Model", (), {"logger": logger, "get_env": lambda self: env})()
    image = np.zeros((64, 64, 3), np.uint8)
    info = {
        "nfe": 2.0,
        "preference": 0.1,
        "network_calls": 4,
        "task": HOSTILE[0],
        "cost_per_nfe": 0.0,
        "prompt": HOSTILE[1],
    }
    log.locals = {"infos": [{**info, "has_image": True, "image": image, "action_trace": [0, 1], "reward_terms": {}}]}
    log._on_training_start()
    log._on_step()
    log._on_rollout_end()
    logger.dump(1)
    logger.close()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"etc/passwd" not in written and b"onload" not in written and b"env/nfe" in written
