"""Images of a report: images side by side, filmstrips next to their prompts, plots that are legible as shown."""

import base64
import io
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from eval_records import record
from legible import assert_legible
from PIL import Image

from addiffusion_env.evaluation import plots
from addiffusion_env.evaluation.decision_tree import branches
from addiffusion_env.evaluation.filmstrips import Filmstrip
from addiffusion_env.evaluation.manifest import Manifest, MarginEntry, SamplerEntry, write_text
from addiffusion_env.evaluation.records import by_sampler, digest_of
from addiffusion_env.evaluation.report import write_report
from addiffusion_env.evaluation.samples import SHOWN, THUMBNAIL, sample_prompts, thumbnail
from addiffusion_env.evaluation.sections import Figure, Table, sections
from addiffusion_env.evaluation.store import RecordStore, png_bytes
from addiffusion_env.evaluation.summary import summarise

LONG = "policy:/home/somebody/projects/adaptive/runs/emoji-with-many-changes/seed-3@0.015"
SAMPLERS_COMPARED = (LONG, "fixed:4", "fixed:20", "prompt_rule:8,6", *(f"threshold_resample:{n}" for n in range(5)))
TASKS = ("Properties & Positioning", "Fine-grained Detail", "Writing & Symbols", "Quantity", "Complex")


def manifest_of(records, samples=12):
    names = list(dict.fromkeys(r.sampler for r in records))
    ids = tuple(dict.fromkeys(r.prompt_id for r in records))
    return Manifest(
        samplers=tuple(SamplerEntry(name, name, {"steps": 8}) for name in names),
        backbone="emoji",
        prompt_ids=ids,
        prompts_digest=digest_of(ids),
        seeds=(0,),
        margins=(MarginEntry(0.01, "2026-01-01T00:00:00+00:00", 0),),
        cost_per_nfe=0.02,
        settings={"samples": samples},
        versions={},
    )


def world(count=40, samplers=SAMPLERS_COMPARED, **same):
    """Records whose NFE, actions and constraints differ, but for what ``same`` says."""
    found = []
    for place, name in enumerate(samplers):
        for n in range(count):
            fields = {
                "nfe": 4 + place + (n % 5 if not name.startswith("fixed") else 0),
                "actions": (0,) * (1 + n % 4) + (2, 1),
                "task": TASKS[n % len(TASKS)],
                "constraints": 1 + n % 4,
                "correct": (n + place) % 3 > 0,
                "preference": place - n / 9,
            }
            found.append(record(name, n, **{**fields, **same}))
    return found


def filmstrip(name, role="best"):
    terms = {"terminal_bonus": (0.0, 1.0), "nfe_cost": (-0.1, -0.1)}
    return Filmstrip("u", name, role, (b"", b""), (0, 1), (0.0, 1.0), terms)


def drawn(records, filmstrips=()):
    pyplot = plots.load_pyplot()
    made = plots.plots(pyplot, records, summarise(records, manifest_of(records)), filmstrips)
    yield from made.items()
    for figure in made.values():
        pyplot.close(figure)


# ---- plots


@pytest.fixture(scope="module")
def figures():
    return dict(drawn(world(), [filmstrip(LONG, role) for role in ("best", "median", "worst", "costliest")]))


STEMS = (
    "frontier",
    "frontier_preference",
    "frontier_seconds",
    "nfe_by_task",
    "nfe_by_constraints",
    "timelines",
    "decision_tree",
    "reward_terms",
)


def test_every_plot_is_drawn(figures):
    assert tuple(figures) == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_a_plot_can_be_read_as_it_is_shown(figures, stem):
    assert_legible(figures[stem])


def test_timelines_show_every_kind_of_prompt_and_every_decision():
    records = world(200, [LONG])
    figure = plots.timelines(plots.load_pyplot(), records)
    [axes] = figure.axes
    cells = axes.collections[0].get_array().reshape(-1, 6)
    assert len(cells) == plots.TIMELINE_ROWS
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        name if len(name) <= 24 else name[:22] + "..." for name in sorted(TASKS)
    ]
    assert {tuple(row.compressed().astype(int)) for row in cells} == {record.actions for record in records}


def test_the_decision_tree_has_each_branch_with_its_share_of_the_images():
    [one] = world(1, [LONG])
    sequences = [(1, 1)] * 6 + [(1, 2, 1)] * 3 + [(0, 1)]
    records = [replace(one, actions=actions, nfe=len(actions), correct=actions[-2] == 1) for actions in sequences]
    found = {branch.actions: branch for branch in branches(records)}
    assert {actions: round(branch.share, 9) for actions, branch in found.items()} == {
        (0,): 0.1, (0, 1): 0.1, (1,): 0.9, (1, 1): 0.6, (1, 2): 0.3, (1, 2, 1): 0.3
    }  # fmt: skip
    assert found[1, 1].nfe == 2 and found[1, 1].correct == 1 and found[1, 2, 1].correct == 0
    assert found[1,].ended == 0 and found[1,].correct is None
    lows = [found[actions].low for actions in ((0,), (1,), (1, 1), (1, 2), (1, 2, 1))]
    assert lows == pytest.approx([0, 0.1, 0.1, 0.7, 0.7])


def test_one_fixed_schedule_has_its_interval_too():
    records = world(20, SAMPLERS_COMPARED[:2])
    pyplot = plots.load_pyplot()
    figure = plots.frontier(pyplot, summarise(records, manifest_of(records)), "preference", "nfe")
    [axes] = figure.axes
    assert set(axes.get_legend_handles_labels()[1]) == {LONG, "fixed:4"}
    assert len(axes.containers) == 2 and all(bar.has_yerr for bar in axes.containers)
    pyplot.close(figure)


STUDY = {
    "policy:emoji@0.238089": (2.29, 0.93), "policy:emoji@0.1": (2.67, 0.96), "policy:emoji@0.3": (2.1, 0.89),
    "policy:emoji@0.45": (1.6, 0.76), "policy:emoji@0.238089,shuffled": (2.27, 0.93),
    "policy:emoji@0.238089,no_refine": (1.5, 0.72), "fixed:4": (4, 0.64), "fixed:6": (6, 0.78), "fixed:8": (8, 0.83),
    "fixed:12": (12, 0.85), "fixed:50": (50, 0.85), "best_of:3x50": (150, 0.96),
    "threshold_resample:0.36,50,3": (62, 0.96), "fixed:20,trailing,unipc": (20, 0.83), "interval:fixed:50": (30, 0.82),
    "stop:4": (3, 0.76), "prompt_rule:8,6": (6.66, 0.82), "best_of:2x4": (8, 0.72), "best_of:3x4": (12, 0.79),
    "threshold_resample:0.36,6,4": (8.6, 0.97), "threshold_resample:-0.52": (10.4, 0.99),
    "threshold_resample:1": (27, 0.99), "policy:emoji_rule@0.252717": (1.93, 0.86),
    "policy:emoji_rule@0.180013": (2.67, 0.95), "policy:emoji_rule@0.015368": (3, 0.97),
}  # fmt: skip
"""The samplers of the study of claims, with NFE and share correct near those of docs/frontier.png."""


def test_the_frontier_of_a_study_names_each_of_its_samplers():
    """25 samplers: an entry for each kind, and at each point of a kind its numbers, on no other text."""
    records = [
        record(name, n, nfe=nfe, correct=n < 100 * share) for name, (nfe, share) in STUDY.items() for n in range(100)
    ]
    pyplot = plots.load_pyplot()
    figure = plots.frontier(pyplot, summarise(records, manifest_of(records)), "correct", "nfe")
    [axes] = figure.axes
    assert_legible(figure)
    assert len(axes.get_legend_handles_labels()[1]) == 11
    written = " ".join(sorted(text for note in axes.texts if (text := note.get_text())))
    assert written == "-0.52 0.0154 0.1 0.18 0.238 0.253 0.3 0.36,50,3 0.36,6,4 0.45 1 12 2x4 3x4 3x50 4 50 6 8"
    pyplot.close(figure)


def test_what_has_one_value_is_told_and_not_drawn():
    """A list of a user's own prompts: no constraints; and a sampler that does the same for each of them."""
    records = world(6, [LONG], constraints=0, nfe=5, actions=(0, 0, 1))
    summary = summarise(records, manifest_of(records))
    assert dict(drawn(records)) == {} and summary.difficulty is None
    written = sections(records, summary, manifest_of(records), [], set())
    told = "\n".join(part for section in written for part in section.parts if isinstance(part, str))
    assert "Rank correlation" not in told
    assert "Every image of policy:" in told and "took 5 NFE." in told
    assert "every prompt has an unknown number of constraints" in told
    assert "Nothing to compare: one sampler, or one cost for all." in told
    assert not any(isinstance(part, Figure) for section in written for part in section.parts)


@pytest.mark.parametrize(
    ("same", "missing"),
    [
        (
            {"constraints": 3, "actions": (0, 1), "seconds": 0.5},
            {"nfe_by_constraints", "timelines", "decision_tree", "frontier_seconds"},
        ),
        ({"nfe": 6}, {"frontier", "frontier_preference", "frontier_seconds", "nfe_by_task", "nfe_by_constraints"}),
    ],
)
def test_each_plot_needs_two_values(same, missing):
    records = world(20, SAMPLERS_COMPARED[:3], **same)
    summary = summarise(records, manifest_of(records))
    found = set(dict(drawn(records)))
    assert found == set(STEMS) - {"reward_terms"} - missing
    assert (summary.difficulty is None) == bool({"constraints", "nfe"} & set(same))


def test_the_bars_of_nfe_by_constraints_are_of_prompts():
    """Two seeds of a prompt are one of its values: three prompts have Student's interval, a single one has none."""
    values = {0: (4, 6), 4: (8, 10), 8: (2, 6), 1: (5, 7)}  # prompt -> NFE of its seeds; 0, 4 and 8 have 1 constraint
    mine = [record("policy:x", n, seed, nfe=nfe) for n, own in values.items() for seed, nfe in enumerate(own)]
    pyplot = plots.load_pyplot()
    figure = plots.nfe_by_constraints(pyplot, {"policy:x": mine}, summarise(mine, manifest_of(mine)))
    (container,) = figure.axes[0].containers
    several, single = container.lines[2][0].get_segments()
    half = 4.302653 * np.std([5, 9, 4], ddof=1) / np.sqrt(3)
    assert several[:, 1] == pytest.approx([6 - half, 6 + half])
    assert np.isnan(single).any() or len(single) == 0
    pyplot.close(figure)


# ---- images side by side


def test_the_sample_is_the_first_prompts_of_each_kind():
    tasks = {f"p{n}": "abc"[n // 10] for n in range(30)}
    assert sample_prompts(tasks, 7) == ["p0", "p1", "p2", "p10", "p11", "p20", "p21"]
    assert sample_prompts(tasks, 2) == ["p0", "p10"]
    assert sample_prompts(dict.fromkeys(("x", "y", "z"), "one kind"), 2) == ["x", "y"]
    assert sample_prompts(tasks, 99) == list(tasks) and sample_prompts(tasks, 0) == []


def test_thumbnails_are_small_and_small_images_stay_as_they_are():
    noise = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), dtype=np.uint8)
    suffix, data = thumbnail(png_bytes(noise))
    with Image.open(io.BytesIO(data)) as small:
        assert (suffix, small.format, small.size) == (".jpg", "JPEG", (THUMBNAIL, THUMBNAIL // 2))
    assert len(data) < 20_000
    own = png_bytes(noise[:64, :64])
    assert thumbnail(own) == (".png", own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    records = world(10, SAMPLERS_COMPARED[:4])
    lost = records.pop()  # left out by a fault
    shade = {r.uid: place for place, r in enumerate(records)}
    images = {r.uid: png_bytes(np.full((64, 64, 3), shade[r.uid], np.uint8)) for r in records if r.prompt_id < "p0008"}
    RecordStore(path / "records").write(records, images)
    filmstrips = [filmstrip(LONG)]
    write_text(path / "evaluation.json", json.dumps(asdict(manifest_of([*records, lost], samples=10))))
    return path, records, filmstrips


def test_the_report_shows_all_samplers_side_by_side(folder):
    path, records, _ = folder
    report = write_report(path)
    page = report.html.read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles[:2] == ["Side by side", "Images of the same prompts"]
    section = page.split("<section ")[2]
    rows = section.split("<tbody>")[1].split("</tr>")[:-1]
    assert len(rows) == 10
    by_key = {(r.prompt, r.sampler): r for r in records}
    shown = 0
    for row in rows:
        first, *cells = row.split("<td>")[1:]
        prompt = first.split(": ", 1)[1].removesuffix("</td>")
        assert len(cells) == 4
        for sampler, cell in zip(SAMPLERS_COMPARED, cells, strict=False):
            made = by_key.get((prompt, sampler))
            if made is None or made.prompt_id >= "p0008":
                assert cell.startswith("left out" if made is None else "not kept")
                continue
            source = re.search(r"base64,([^\"]+)", cell)[1]
            with Image.open(io.BytesIO(base64.b64decode(source))) as image:
                assert np.asarray(image)[0, 0, 0] == records.index(made)
            assert f'width="{SHOWN}"' in cell and "image-rendering: pixelated" in cell
            mark = "\N{CHECK MARK}" if made.correct else "\N{BALLOT X}"
            assert f"<figcaption>{mark} {made.nfe:g} NFE" in cell
            shown += 1
    assert shown == 8 * 4
    markdown = report.markdown.read_text(encoding="utf-8")
    files = re.findall(r"\]\(plots/(sample_\w+\.png)\)", markdown)
    assert len(files) == shown and all((path / "plots" / name).is_file() for name in files)


def test_the_images_of_the_sample_are_kept_and_no_others(emoji, scorers, prompts, tmp_path):
    from addiffusion_env.engine.process import ProcessConfig
    from addiffusion_env.evaluation.runner import EvaluationContext, carry_out, plan
    from addiffusion_env.evaluation.samples import sample_uids
    from addiffusion_env.samplers import make_sampler

    context = EvaluationContext(emoji, scorers, ProcessConfig(steps=1))
    plans = plan([make_sampler("fixed:1"), make_sampler("fixed:2")], prompts[:3], [5, 6], context)
    uids = sample_uids(plans, 2)
    chosen = set(sample_prompts({p.prompt_id: p.task for p in prompts[:3]}, 2))
    records = carry_out(plans, context, tmp_path, keep_images=uids)
    kept = RecordStore(tmp_path / "records").images(record.uid for record in records)
    assert set(kept) == uids and len(uids) == 2 * 2
    assert {(r.sampler, r.prompt_id, r.seed) for r in records if r.uid in kept} == {
        (name, prompt_id, 5) for name in ("fixed:1", "fixed:2") for prompt_id in chosen
    }


def test_a_filmstrip_stands_beside_its_prompt():
    records = world(5, SAMPLERS_COMPARED[:2])
    first = by_sampler(records)[LONG][0]
    shown = replace(filmstrip(LONG), uid=first.uid)
    summary = summarise(records, manifest_of(records))
    section = sections(records, summary, manifest_of(records), [shown], {"reward_terms"})[-2]
    [table] = [part for part in section.parts if isinstance(part, Table)]
    [(words, strip)] = table.rows
    assert first.prompt in words and strip.stem == "film_00"
    assert strip.caption.startswith(f"\N{BALLOT X} {first.nfe:g} NFE: expected 2 cats, found 1; preference")
