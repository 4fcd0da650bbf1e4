"""The pairwise judge against a real server: verdicts, bias, cache, money."""

import json
import math
import threading

import pytest
from vlm_server import COST, DEAR, INPUT_TOKENS, SERVICES, JudgeServer, by_brightness, client_of, grey, judged

from addiffusion_env.errors import ConfigError, ImageRangeError, RunFolderError, UnknownNameError
from addiffusion_lab.vlm import make_client
from addiffusion_lab.vlm.costs import PRICES
from addiffusion_lab.vlm.judge import compare
from addiffusion_lab.vlm.verdicts import PairVerdict, read_vote, verdict_of, win_rate

pytest.importorskip("openai")


@pytest.fixture
def server():
    found = JudgeServer()
    yield found
    found.close()


@pytest.mark.parametrize("service", SERVICES)
def test_an_honest_judge_finds_the_better_image(server, service):
    report = judged(server, grey(200, 10, 100, 30), grey(100, 60, 100, 30.4), service=service)
    assert [verdict.outcome for verdict in report.verdicts] == ["a", "b", "tie", "tie"]
    assert server.requests == {service: 4}, "equal images need no judge"
    assert report.win_rate.estimate == pytest.approx(0.5) and report.win_rate.n == 4
    assert (report.position.first, report.position.second) == (2, 2) and report.position.share == 0.5
    assert report.disagreements == report.flips == report.parse_failures == 0 and report.complete
    assert report.cost == pytest.approx(4 * COST)
    assert report.served == ("judge-1" if service == "openai" else "gemini-judge",)


def test_images_reach_the_service_whole_and_without_names(server):
    judged(server, grey(200), grey(100), ['a "big"\ndog'])
    body = server.bodies[0]
    assert body["temperature"] == 0 and body["max_tokens"] == 1024 and body["model"] == "judge-1"
    texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
    assert 'The prompt: "a \\"big\\"\\ndog"' in texts[0]


def test_a_judge_that_always_prefers_the_first_gives_ties_and_is_found_out(server):
    server.judge = lambda prompt, first, second: "VERDICT: FIRST"
    report = judged(server, grey(*range(10, 20)), grey(*range(110, 120)))
    assert report.count("tie") == report.disagreements == report.flips == 10
    assert report.position.share == 1.0 and report.position.z == pytest.approx(math.sqrt(20))
    assert report.win_rate.estimate == 0.5
    assert "100% for the first place (z +4.5)" in str(report)


def test_replies_without_a_verdict_are_left_out_and_counted(server):
    server.judge = lambda prompt, *pair: "I cannot say." if prompt == "prompt 1" else by_brightness(prompt, *pair)
    report = judged(server, grey(200, 201, 202), grey(100, 101, 102))
    assert [verdict.outcome for verdict in report.verdicts] == ["a", "unparsed", "a"]
    assert report.parse_failures == 2 and report.replies == 6 and report.win_rate.n == 2
    assert "2 of 6 replies unparsed, 1 pairs left out" in str(report)


def test_a_few_wins_in_a_row_are_no_certainty():
    """Tango's interval where one side always wins; a bootstrap of equal scores would have no width."""
    won = [PairVerdict(f"p{n}", "a") for n in range(5)]
    found = win_rate(won)
    assert (found.estimate, found.high, found.n) == (1, 1, 5)
    assert found.low < 0.8
    tied = win_rate([PairVerdict(f"p{n}", "tie") for n in range(20)])
    assert (tied.low, tied.high) == pytest.approx((0.4195, 0.5805), abs=1e-4)  # .5 -+ z^2 / (n + z^2) / 2


def test_seeds_of_one_prompt_count_as_one(server):
    report = judged(server, grey(200, 201, 10, 202), grey(100, 101, 102, 103), ["one", "one", "one", "two"])
    assert sorted(report.scores().values()) == pytest.approx([2 / 3, 1])
    assert report.win_rate.estimate == pytest.approx(5 / 6) and report.win_rate.n == 2


@pytest.mark.parametrize(
    ("votes", "outcome", "disagrees", "flips"),
    [
        (("first", "second"), "a", False, False),
        (("second", "first"), "b", False, False),
        (("tie", "tie"), "tie", False, False),
        (("first", "first"), "tie", True, True),
        (("second", "second"), "tie", True, True),
        (("first", "tie"), "tie", True, False),
        (("tie", "first"), "tie", True, False),
        (("unparsed", "second"), "unparsed", False, False),
        (("tie", "unparsed"), "unparsed", False, False),
    ],
)
def test_votes_make_a_verdict(votes, outcome, disagrees, flips):
    found = verdict_of("p", votes, ("", ""))
    assert (found.outcome, found.disagrees, found.flips) == (outcome, disagrees, flips)


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("VERDICT: FIRST", "first"),
        ("verdict - second.", "second"),
        ("**VERDICT:** [TIE]", "tie"),
        ("VERDICT: FIRST\n... no:\nVERDICT: SECOND", "unparsed"),
        ("VERDICT: FIRSTLY", "unparsed"),
        ("The first image is better.", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_votes_are_read_strictly(text, vote):
    assert read_vote(text) == vote


def test_cached_replies_are_not_paid_again(server, tmp_path):
    a, b = grey(200, 10), grey(100, 60)
    first = judged(server, a, b, cache=tmp_path)
    said: list[str] = []
    again = judged(server, a, b, cache=tmp_path, said=said, max_cost=0)
    swapped = judged(server, b, a, cache=tmp_path, max_cost=0)
    assert server.requests["openai"] == 4
    assert (first.asked, first.cached, again.asked, again.cached, again.cost) == (4, 0, 0, 4, 0)
    assert again.verdicts == first.verdicts
    assert [verdict.outcome for verdict in swapped.verdicts] == ["b", "a"], "the same questions in the other order"
    assert "0 questions to ask, at most $0.00" in said[0]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("change", ["image", "prompt", "model", "limit"])
def test_another_question_has_another_reply(server, tmp_path, change):
    a, b = grey(200), grey(100)
    judged(server, a, b, cache=tmp_path)
    options = {"max_output_tokens": 7} if change == "limit" else {}
    model = "judge-2" if change == "model" else "judge-1"
    client = make_client(f"openai:{model}", base_url=f"{server.url}/v1", **options)
    prompts = ["another" if change == "prompt" else "prompt 0"]
    images = grey(201) if change == "image" else a
    report = compare(images, b, prompts, client, max_cost=1000, price=DEAR, cache=tmp_path, say=lambda text: None)
    assert (report.asked, report.cached) == (2, 0)


def test_a_damaged_reply_is_asked_again(server, tmp_path):
    judged(server, grey(200), grey(100), cache=tmp_path)
    path = next(tmp_path.rglob("*.json"))
    path.write_text(path.read_text()[:40])
    with pytest.warns(UserWarning, match="cannot be read .*: asked again"):
        report = judged(server, grey(200), grey(100), cache=tmp_path)
    assert (report.asked, report.cached) == (1, 1)
    assert json.loads(path.read_text())["reply"]["text"]


def test_replies_that_cannot_be_kept_stop_the_run(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot keep replies"):
        judged(server, grey(200), grey(100), cache=tmp_path / "file")


@pytest.mark.parametrize("workers", [1, 4])
def test_the_limit_is_kept_and_the_run_goes_on_later(server, tmp_path, workers):
    a, b = grey(*range(100, 112)), grey(*range(12))
    said: list[str] = []
    limit = 9.0
    report = judged(server, a, b, cache=tmp_path, max_cost=limit, workers=workers, said=said)
    most = DEAR.of(INPUT_TOKENS, 1024)
    assert report.cost <= limit < report.cost + 2 * most
    assert report.cost == pytest.approx(server.requests["openai"] * COST)
    assert not report.complete and 0 < report.count("unasked") < 12
    assert report.win_rate.n == 12 - report.count("unasked")
    assert "12 pairs in both orders, 24 questions to ask, at most $" in said[0] and "limit $9.00" in said[0]
    assert "stopped by max_cost" in str(report)
    rest = judged(server, a, b, cache=tmp_path, workers=workers)
    assert rest.complete and server.requests["openai"] == 24
    assert rest.count("a") == 12


def test_nothing_is_asked_without_money(server):
    report = judged(server, grey(200), grey(100), max_cost=0)
    assert not server.requests and report.count("unasked") == 1 and report.win_rate is None


def test_estimates_learn_how_the_service_counts(server):
    """A service that counts more than was estimated cannot exceed the limit but by its first question."""
    client = client_of(server)
    client.image_tokens = lambda width, height: 1
    estimated = DEAR.of(INPUT_TOKENS, 1024)
    report = compare(
        grey(*range(100, 110)),
        grey(*range(10)),
        [str(number) for number in range(10)],
        client,
        max_cost=4 * COST + estimated - 0.01,
        price=DEAR,
        workers=1,
        say=lambda text: None,
    )
    assert report.asked == 4 and report.cost == pytest.approx(4 * COST)


def test_workers_ask_at_the_same_time(server):
    server.together = threading.Barrier(4)  # broken, with an error, unless four requests are there at once
    report = judged(server, grey(*range(100, 104)), grey(*range(4)), workers=4)
    assert report.count("a") == 4 and not server.together.broken


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prompts": ["one", "two"]}, ConfigError, "1 and 1 images for 2 prompts"),
        ({"b": grey(1, size=17)}, ImageRangeError, "are (16, 16, 3) and (17, 17, 3)"),
        ({"max_cost": -1}, ConfigError, "max_cost must be 0 or more dollars, got -1"),
        ({"max_cost": math.nan}, ConfigError, "got nan"),
        ({"workers": 0}, ConfigError, "workers must be at least 1"),
        ({"price": None}, UnknownNameError, "pass price=Price(input=..., output=...)"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_asked(server, change, error, words):
    with pytest.raises(error) as caught:
        judged(server, **{"a": grey(2), "b": grey(1), **change})
    assert words in str(caught.value) and not server.requests


@pytest.mark.parametrize("spec", PRICES)
def test_every_listed_judge_is_pinned(spec, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    client = make_client(spec)
    assert client.identity == spec
    assert client.image_tokens(64, 64) == {"openai": 255, "gemini": 258}[client.service.name]
    assert client.image_tokens(1024, 1024) == {"openai": 765, "gemini": 1032}[client.service.name]
