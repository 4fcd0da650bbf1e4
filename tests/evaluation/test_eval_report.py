"""Reports, from records alone."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from eval_records import record

from addiffusion_env.errors import ConfigError, RunFolderError
from addiffusion_env.evaluation.manifest import Manifest, MarginEntry, SamplerEntry, read_manifest, write_text
from addiffusion_env.evaluation.plots import load_pyplot
from addiffusion_env.evaluation.records import digest_of
from addiffusion_env.evaluation.rendering import to_html, to_markdown
from addiffusion_env.evaluation.report import write_report
from addiffusion_env.evaluation.sections import Figure, Section, Table, sections
from addiffusion_env.evaluation.series import FIXED, Label, series_of, write_labels
from addiffusion_env.evaluation.store import RecordStore, png_bytes
from addiffusion_env.evaluation.summary import reference_of, summarise
from addiffusion_env.evaluation.tables import focus_of
from addiffusion_env.samplers import named_traits
from addiffusion_env.samplers.traits import Traits

NAMES = ("policy:run@0.01", "fixed:4", "fixed:8", "fixed:20")
EVIL = "<script>alert('x')</script> & a | pipe"


def world(count=48):
    """A policy at 6 NFE that is correct more often than 8 fixed steps, and spends more on more constraints."""
    draw = np.random.default_rng(0).random(count)
    records = []
    for n in range(count):
        actions = (0,) * (2 + n % 4) + (1,)
        nfe = 4 + n % 4
        records.append(record(NAMES[0], n, nfe=nfe, correct=bool(draw[n] < 0.95), preference=draw[n], actions=actions))
        for name, share in zip(NAMES[1:], (0.6, 0.8, 0.85), strict=True):
            steps = int(name.split(":")[1])
            records.append(
                record(name, n, nfe=steps, correct=bool(draw[n] < share), preference=-draw[n], actions=(0,) * steps)
            )
    return records


def manifest_of(records, margin=0.01):
    ids = tuple(sorted({r.prompt_id for r in records}))
    return Manifest(
        samplers=tuple(SamplerEntry(name, name, {"steps": 8}) for name in NAMES),
        backbone="emoji",
        prompt_ids=ids,
        prompts_digest=digest_of(ids),
        seeds=(0,),
        margins=(
            MarginEntry(0.02, "2026-01-01T00:00:00+00:00", 0),
            MarginEntry(margin, "2026-01-02T00:00:00+00:00", 7),
        ),
        cost_per_nfe=0.02,
        settings={"prompts": len(ids), "note": EVIL},
        versions={"python": "3.11"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from dataclasses import asdict

    path = tmp_path_factory.mktemp("run")
    records = world()
    stray = record("old", 3, correct=False)  # of an earlier evaluation in the same folder
    RecordStore(path / "records").write([*records, stray])
    write_text(path / "evaluation.json", json.dumps(asdict(manifest_of(records))))
    return path


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(folder):
    return write_report(folder)


def test_a_report_is_one_file_with_everything_escaped_and_nothing_fetched(folder, report):
    page = Page()
    page.feed(report.html.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert EVIL in page.text
    others = [source for source in page.sources if not source.startswith(("data:image/png;base64,", "#"))]
    assert others == ["gallery.html"] and report.gallery == folder / "gallery.html" and report.gallery.is_file()
    assert page.tags.count("img") == 7
    for name in NAMES:
        assert name in page.text
    assert "old" not in [row.sampler for row in report.summary.samplers]
    assert "after 7 records" in page.text
    markdown = report.markdown.read_text(encoding="utf-8")
    assert {f"plots/{path.name}" for path in (folder / "plots").iterdir()} == set(
        re.findall(r"plots/\w+\.png", markdown)
    )


def test_the_same_records_give_the_same_report(folder, report):
    before = [path.read_bytes() for path in (report.html, report.markdown, report.summary_json, report.gallery)]
    again = write_report(folder)
    after = [path.read_bytes() for path in (again.html, again.markdown, again.summary_json, again.gallery)]
    assert after == before


def test_the_summary_finds_what_was_planted(report):
    records = world()
    found = summarise(records, manifest_of(records))
    assert (found.primary, found.focus, found.reference) == ("correct", NAMES[0], "fixed:20")
    assert {row.sampler: row.nfe.estimate for row in found.samplers}["policy:run@0.01"] == 5.5
    assert found.frontier.gain.low > 0
    assert found.difficulty.statistic > 0.9
    assert found.difficulty.p < 0.001
    assert found.non_inferiority.holds
    assert not found.behaviours[NAMES[0]].collapsed
    assert set(found.behaviours) == {NAMES[0]}
    assert {row.sampler for row in found.pairs} == set(NAMES[1:])
    assert found.regret.best_constant == "fixed:4"
    assert len(found.tasks) == 2 * len(NAMES)
    saved = json.loads(report.summary_json.read_text())
    assert saved["samplers"][0]["nfe"]["estimate"] == 5.5


@pytest.mark.parametrize(
    ("nfe", "told"),
    [
        (2, "At mean NFE (2.00), FOCUS minus the cheapest constant, fixed:4 with correct 0.800 at 4.00: "),
        (4, "At equal mean NFE (4.00), FOCUS minus the strongest constant, fixed:4 with correct 0.800: "),
        (6, "At equal mean NFE (6.00), FOCUS minus the strongest constant, a mixture of fixed:4 and fixed:8 "),
        (9, "At mean NFE (9.00), FOCUS minus the most expensive constant, fixed:8 with correct 0.900 at 8.00: "),
    ],
)  # fmt: skip
def test_a_gain_is_called_one_at_equal_cost_only_where_it_is(nfe, told):
    shares = {NAMES[0]: (nfe, 1.0), "fixed:4": (4, 0.8), "fixed:8": (8, 0.9)}
    records = [
        record(name, n, nfe=cost, correct=n < 20 * share) for name, (cost, share) in shares.items() for n in range(20)
    ]
    manifest = manifest_of(records)
    [_, section, *_] = sections(records, summarise(records, manifest), manifest, [], set())
    assert section.title == "Quality against cost" and section.parts[0].startswith(told.replace("FOCUS", NAMES[0]))


def test_no_two_samplers_look_alike():
    """A legend's entry and the text at its point tell every sampler; the policy's costs per NFE have its colour."""
    costs_per_nfe = ("policy:run@0.01", "policy:run@0", "policy:run@0.02", "policy:run@0.03")
    rules = ("prompt_rule:8,6", "stop:4", "random:0.1", *(f"threshold_resample:{n}" for n in range(20)))
    controls = ("policy:run@0.01,shuffled", "policy:run@0.01,no_refine", "policy:other@0.01", "fixed:20,trailing,unipc")
    names = (*costs_per_nfe, *rules, *controls, "fixed:4", "fixed:8", "fixed:1000")
    records = [record(name, n, nfe=4 + place, preference=n) for place, name in enumerate(names) for n in range(3)]
    entries = tuple(SamplerEntry(name, name, {}) for name in names)
    found = series_of(summarise(records, replace(manifest_of(records), samplers=entries)))
    assert sorted(name for series in found for name in series.rows) == sorted(names)
    assert len({(series.name, text) for series in found for text in series.rows.values()}) == len(names)
    assert len({(series.colour, series.marker) for series in found}) == len(found)
    of = {series.name: series for series in found}
    assert found[0].name == FIXED and found[0].rows == {f"fixed:{n}": str(n) for n in (4, 8, 1000)} and found[0].joined
    assert of["policy:run@…"].rows == dict(zip(costs_per_nfe, ("0.01", "0", "0.02", "0.03"), strict=True))
    assert of["policy:run@…"].joined and not of["threshold_resample:…"].joined
    assert [series.name for series in found if series.colour == of["policy:run@…"].colour] == ["policy:run@…"]
    assert {"fixed:20,trailing,unipc", "policy:run@0.01,shuffled", "prompt_rule:8,6"} < set(of)


def test_no_text_of_a_figure_covers_an_error_bar():
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.set(xlim=(0, 4), ylim=(0, 4))
    bars = (((2, 0.5), (2, 2)), ((0.5, 2), (3.5, 2)))  # below it and to both sides
    write_labels(figure, axes, [Label(2, 2, "0.03", "red", bars)], 8)
    box = axes.texts[0].get_window_extent()
    x, y = axes.transData.transform((2, 2))
    pyplot.close(figure)
    assert box.y0 > y and box.x0 < x < box.x1, "above"


def test_without_verdicts_preference_is_primary_and_said_so():
    records = [
        record(name, n, correct=None, reason="", preference=k + n / 10)
        for k, name in enumerate(NAMES)
        for n in range(5)
    ]
    found = summarise(records, manifest_of(records))
    assert found.primary == "preference"
    assert all(row.correct is None for row in found.samplers)


def test_who_a_report_is_about():
    def named(*names):
        return {name: named_traits(name) for name in names}

    assert focus_of(named("fixed:4", "random:0.1")) == "random:0.1"
    assert focus_of({**named("fixed:4", "prompt_rule:8,6"), "mine": Traits(needs_preview=True)}) == "mine"
    assert focus_of(named("oracle_stop:preference", "fixed:4")) == "fixed:4"
    assert focus_of(named("oracle_stop:preference")) == "oracle_stop:preference"
    assert focus_of(named("random:0.1", "policy:x@0.02", "policy:x@0.01")) == "policy:x@0.02"
    assert reference_of(named("fixed:4", "fixed:50,leading", "stop:60", "best_of:90x2")) == "fixed:50,leading"
    assert reference_of(named("stop:6")) is None


def test_markup_in_texts_is_shown_not_obeyed():
    section = Section("a < b", (EVIL, Table(("h|h",), (("*x*",),), strong=0), Figure("f", "c & d")))
    page = to_html("t", [section], {"f": png_bytes(np.zeros((2, 3, 3), np.uint8))})
    assert "<script>" not in page
    assert "c &amp; d" in page
    text = to_markdown("t", [section])
    assert "| h\\|h |" in text
    assert "**\\*x\\***" in text


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"evaluation\.json is missing"):
        write_report(tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_manifest(tmp_path)


def test_margins_are_remembered(tmp_path, emoji, scorers, prompts):
    from addiffusion_env.engine.process import ProcessConfig
    from addiffusion_env.evaluation.manifest import write_manifest
    from addiffusion_env.evaluation.runner import EvaluationContext, plan
    from addiffusion_env.samplers import make_sampler

    plans = plan([make_sampler("fixed:2")], prompts[:2], [0], EvaluationContext(emoji, scorers, ProcessConfig(steps=2)))
    first = write_manifest(tmp_path, plans, "emoji", {}, 0.01, 0.02)
    same = write_manifest(tmp_path, plans, "emoji", {}, 0.01, 0.02)
    assert first.margins == same.margins
    RecordStore(tmp_path / "records").write([record()])
    moved = write_manifest(tmp_path, plans, "emoji", {}, 0.05, 0.02)
    assert [(entry.margin, entry.records_before) for entry in moved.margins] == [(0.01, 0), (0.05, 1)]
    assert read_manifest(tmp_path) == moved
    with pytest.raises(ConfigError, match="margin must be above 0"):
        write_manifest(tmp_path, plans, "emoji", {}, 0.0, 0.02)
