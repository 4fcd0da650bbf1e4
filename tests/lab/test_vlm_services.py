"""Both services' faults, over real HTTP: slow, malformed, refused, rate-limited; and keys that never show."""

import json
import logging
import socket
import time

import numpy as np
import pytest
from vlm_server import QUICK, SERVICES, JudgeServer, client_of, grey, judged, write

from addiffusion_env.errors import ConfigError, UnknownNameError
from addiffusion_env.evaluation.store import png_bytes
from addiffusion_lab.vlm import make_client
from addiffusion_lab.vlm.client import Reply
from addiffusion_lab.vlm.costs import Ledger, Price
from addiffusion_lab.vlm.retries import AttemptError, RetryPolicy, VlmServiceError, retry_after, with_retries
from addiffusion_lab.vlm.verdicts import read_vote

KEY = "sk-secret-0123456789"
PNG = png_bytes(grey(1)[0])

pytest.importorskip("openai")


@pytest.fixture
def server():
    found = JudgeServer()
    yield found
    found.close()


def failure(status, message="no", **more):
    """An error's body as both services write it."""
    return json.dumps({"error": {"code": status, "message": message, "status": "FAILED", **more}})


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "fault",
    [
        (429, {"retry-after": "0.02"}, failure(429)),
        (429, {}, failure(429)),
        (500, {}, failure(500)),
        (503, {}, "<html>busy</html>"),
        (200, {"content-type": "text/html"}, "<html>gateway</html>"),
        (200, {}, '{"choices": [{"mess'),
        (200, {}, "{}"),
        (200, {}, "[]"),
        (200, {}, '{"choices": [], "candidates": []}'),
        (200, {}, '{"choices": 3, "candidates": 3}'),
        "drop",
    ],
    ids=str,
)
def test_troubles_that_pass_are_asked_again(server, service, fault):
    server.faults = [fault, fault]
    report = judged(server, grey(200), grey(100), service=service, workers=1)
    assert report.count("a") == 1 and report.retries == 2 and server.requests[service] == 4
    billed = fault == "drop" or fault[0] == 200
    assert (report.cost > 4) is billed, "a reply that was lost may have been charged, an error was not"


@pytest.mark.parametrize("service", SERVICES)
def test_slow_replies_are_given_up_and_asked_again(server, service):
    server.faults = ["slow"]
    client = client_of(server, service, timeout=0.2)
    with pytest.raises(AttemptError, match="no answer in time") as caught:
        client.ask(('The prompt: "x"', *2 * (PNG,)))
    assert caught.value.retry and caught.value.billed


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_refusals_end_the_run_at_once(server, service, status):
    server.faults = [(status, {}, failure(status, "wrong key or model"))]
    with pytest.raises(VlmServiceError, match=f"refuses: HTTP {status}.*wrong key or model") as caught:
        judged(server, grey(200, 201, 202), grey(1, 2, 3), service=service, workers=1)
    assert "check the key" in caught.value.remedy and server.requests[service] == 1


def test_no_money_left_is_no_rate_limit(server):
    server.faults = [(429, {}, json.dumps({"error": {"code": "insufficient_quota", "message": "pay first"}}))]
    with pytest.raises(VlmServiceError, match="pay first"):
        judged(server, grey(200), grey(100), workers=1)
    assert server.requests["openai"] == 1


@pytest.mark.parametrize("service", SERVICES)
def test_a_closed_port_is_named_after_all_retries(service):
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{port.getsockname()[1]}"
    client = make_client(f"{service}:x", base_url=url)
    with pytest.raises(VlmServiceError, match=r"failed 3 times, last: no connection.*refused"):
        with_retries(lambda: client.ask(("hello",)), QUICK, client.identity)


@pytest.mark.parametrize("service", SERVICES)
def test_replies_before_a_failure_are_kept(server, tmp_path, service):
    judged(server, grey(200), grey(100), service=service, cache=tmp_path)
    server.faults = [(500, {}, failure(500))] * 3
    with pytest.raises(VlmServiceError, match="failed 3 times, last: HTTP 500"):
        judged(server, grey(200, 201), grey(100, 101), service=service, cache=tmp_path, workers=1)
    report = judged(server, grey(200, 201), grey(100, 101), service=service, cache=tmp_path)
    assert (report.asked, report.cached) == (2, 2)


def test_what_a_filter_refuses_is_no_verdict(server):
    body = {"error": {"code": "content_policy_violation", "message": "not this image"}}
    server.faults = [(400, {}, json.dumps(body))]
    report = judged(server, grey(200, 201), grey(100, 101), workers=1)
    assert report.count("unparsed") == 1 and report.count("a") == 1 and report.parse_failures == 1


@pytest.mark.parametrize("message", [None, {"role": "assistant"}], ids=str)
def test_what_gemini_blocks_is_no_verdict(server, message):
    change = {"finish_reason": "content_filter: PROHIBITED_CONTENT", "message": message}
    reply = reply_of(server, "gemini", lambda body: body["choices"][0].update(change))
    assert reply.text == "" and reply.refusal == "content_filter: PROHIBITED_CONTENT"


@pytest.mark.parametrize("service", SERVICES)
def test_the_service_says_how_long_to_wait(server, service):
    server.faults = [(429, {"retry-after": "0.3"}, failure(429))]
    begun = time.perf_counter()
    judged(server, grey(200), grey(100), service=service, retries=RetryPolicy(3, base=0, longest=0))
    assert time.perf_counter() - begun >= 0.3
    server.faults = [(429, {"retry-after": "3600"}, failure(429))]
    with pytest.raises(VlmServiceError, match="asks to wait 3600 s, more than 1"):
        judged(server, grey(200), grey(100), service=service)


def reply_of(server, service, change):
    """What the client reads out of the server's own answer after ``change`` was made to it."""
    body = write("VERDICT: FIRST", "m")
    change(body)
    server.faults = [(200, {}, json.dumps(body))]
    return client_of(server, service).ask(("hello",))


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, (0, 0)),
        (None, (0, 0)),
        ({"prompt_tokens": 12}, (12, 0)),
        ({"completion_tokens": 7}, (0, 7)),
        ({"prompt_tokens": None, "completion_tokens": "many"}, (0, 0)),
        ({"prompt_tokens": 12, "total_tokens": 17}, (12, 0)),  # thoughts alone: the text is not in it
        ({"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}, (12, 7)),
        ({"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 24}, (12, 12)),
    ],
)
def test_what_the_service_did_not_count_makes_no_reply_malformed(server, usage, tokens):
    reply = reply_of(server, "openai", lambda body: body.update(usage=usage))
    assert reply.text == "VERDICT: FIRST" and (reply.input_tokens, reply.output_tokens) == tokens


@pytest.mark.parametrize(
    ("counted", "text", "cost"),
    [
        ((700, 20), "x", (700, 20)),
        ((700, 0), "x", (700, 1024)),  # a text has tokens: its longest is assumed
        ((700, 0), "", (700, 0)),
        ((0, 20), "x", (500, 20)),  # as estimated
        ((0, 0), "x", (500, 1024)),
        ((0, 0), "", (500, 1024)),
    ],
)
def test_what_was_not_counted_is_booked_at_its_most(server, counted, text, cost):
    ledger = Ledger(client_of(server), Price(1.0, 10.0), 1.0)
    ledger.settle(ledger.reserve(500.0), 500.0, Reply(text, *counted, model="m"))
    assert ledger.spent == pytest.approx(Price(1.0, 10.0).of(*cost))


THOUGHT = "Perhaps VERDICT: SECOND."


@pytest.mark.parametrize(
    ("content", "vote", "refusal"),
    [
        ([{"type": "text", "text": "VERDICT: FI"}, {"type": "text", "text": "RST"}], "first", ""),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, "VERDICT: TIE"], "tie", ""),
        ([{"type": "reasoning", "text": THOUGHT}, {"type": "output_text", "text": "VERDICT: FIRST"}], "first", ""),
        ([{"text": THOUGHT, "thought": True}, {"text": "VERDICT: FIRST"}], "first", ""),
        ([{"type": "thinking", "thinking": THOUGHT}], "unparsed", ""),
        ([{"type": "refusal", "refusal": "I cannot."}], "unparsed", "I cannot."),
        ([], "unparsed", ""),
        (None, "unparsed", ""),
        (f"<think>{THOUGHT}</think>VERDICT: FIRST", "first", ""),
        (f"{THOUGHT}\n</think>\n\nVERDICT: FIRST", "first", ""),  # the tag was opened in the prompt's template
        (f"<think>{THOUGHT}", "unparsed", ""),  # cut off
        (f"<thinking>{THOUGHT}</thinking> VERDICT: TIE <think>{THOUGHT}</think>", "tie", ""),
        (f"VERDICT: FIRST <think>{THOUGHT}</think>", "first", ""),
    ],
    ids=str,
)
def test_thinking_is_no_verdict(server, content, vote, refusal):
    reply = reply_of(server, "openai", lambda body: body["choices"][0]["message"].update(content=content))
    assert read_vote(reply.text) == vote and reply.refusal == refusal
    assert isinstance(content, str) or THOUGHT not in reply.text


@pytest.mark.parametrize("content", [3, {"text": "VERDICT: TIE"}, [3]], ids=str)
def test_content_of_no_known_type_is_malformed(server, content):
    with pytest.raises(AttemptError, match=r"malformed reply: .*content is of type"):
        reply_of(server, "openai", lambda body: body["choices"][0]["message"].update(content=content))


@pytest.mark.parametrize("service", SERVICES)
def test_minutes_that_the_service_asks_for_are_waited_up_to_the_limit(server, service, caplog):
    """Not within the package, which would sleep unnoticed."""
    client, slept = client_of(server, service, timeout=5.0), []
    server.faults = [(429, {"retry-after": "61"}, failure(429)), (503, {"retry-after": "300"}, failure(503))]
    reply = with_retries(
        lambda: client.ask(('The prompt: "x"', *2 * (PNG,))), RetryPolicy(), client.identity, sleep=slept.append
    )
    assert slept == [61.0, 300.0] and reply.text == "Both are as bright. VERDICT: TIE"
    assert "asking again in 61.0 s" in caplog.text
    server.faults = [(429, {"retry-after": "301"}, failure(429))]
    with pytest.raises(VlmServiceError, match="asks to wait 301 s, more than 300") as caught:
        with_retries(lambda: client.ask(("hello",)), RetryPolicy(), client.identity, sleep=slept.append)
    assert "RetryPolicy(patience=...)" in caught.value.remedy and len(slept) == 2
    server.faults = [(429, {"retry-after": "301"}, failure(429))]
    with_retries(
        lambda: client.ask(('The prompt: "x"', *2 * (PNG,))),
        RetryPolicy(patience=600),
        client.identity,
        sleep=slept.append,
    )
    assert slept[2:] == [301.0]


def test_gemini_says_it_in_the_body_too(server):
    info = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7.5s"}]
    server.faults = [(429, {}, f"[{failure(429, details=info)}]")]  # in a list, as its OpenAI endpoint does
    with pytest.raises(AttemptError) as caught:
        client_of(server, "gemini").ask(("hello",))
    assert caught.value.wait == 7.5 and caught.value.retry


def test_dates_are_read_too():
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 10**8
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after-ms": "nan"}) is None


def test_pauses_double_up_to_the_longest_and_never_undercut_the_service():
    def pauses(wait):
        def fails():
            raise AttemptError("busy", retry=True, wait=wait)

        slept = []
        with pytest.raises(VlmServiceError, match="failed 7 times"):
            with_retries(fails, RetryPolicy(attempts=7, base=1, longest=10), "it", sleep=slept.append)
        return slept

    drawn = np.array([pauses(None) for _ in range(50)]).max(axis=0)
    most = np.array([1, 2, 4, 8, 10, 10])
    assert (drawn <= most).all() and (drawn > most / 2).all()
    assert pauses(42.0) == [42.0] * 6


@pytest.mark.parametrize("service", SERVICES)
def test_keys_never_show(server, service, monkeypatch, caplog, tmp_path, capsys):
    """Not in logs of any level, errors (though the service quotes them), traces, files or names."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    client = client_of(server, service, key_variable="JUDGE_KEY")
    quoted = f"Incorrect API key provided: {KEY}"
    server.faults = [(500, {}, failure(500, quoted)), (401, {}, failure(401, quoted))]
    caplog.set_level(logging.DEBUG)
    with pytest.raises(VlmServiceError) as caught:
        with_retries(lambda: client.ask(("hello",)), QUICK, client.identity)
    assert server.keys == {KEY}, "but it was sent"
    shown = [str(caught.getrepr(style="long", showlocals=False)), str(caught.value), repr(client), str(client)]
    shown += [caplog.text, *capsys.readouterr()]
    assert "Incorrect API key provided: [key]" in shown[1] and "asking again" in caplog.text
    assert not [text for text in shown if KEY in text]
    error = caught.value
    while error is not None:  # whatever a handler may print
        assert KEY not in repr(error.args)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    ("service", "variables"), [("openai", ["OPENAI_API_KEY"]), ("gemini", ["GEMINI_API_KEY", "GOOGLE_API_KEY"])]
)
def test_a_missing_key_is_named(service, variables, monkeypatch):
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    model = "gpt-4o-2024-11-20" if service == "openai" else "gemini-2.5-flash"
    with pytest.raises(ConfigError) as caught:
        make_client(f"{service}:{model}")
    assert caught.value.cause == f"no key for {service}: the environment variable {' or '.join(variables)} is not set"
    assert caught.value.remedy.startswith(f"export {variables[0]}=...")
    with pytest.raises(ConfigError, match="variable MY_KEY is not set"):
        make_client(f"{service}:{model}", base_url="http://localhost", key_variable="MY_KEY")


@pytest.mark.parametrize("service", SERVICES)
def test_the_usual_key_is_not_sent_to_another_server(server, service, monkeypatch):
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, KEY)
    judged(server, grey(200), grey(100), service=service)
    assert server.keys == {"none-needed"}


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("openai:gpt-4o", ConfigError, "'gpt-4o' is not pinned"),
        ("openai:chatgpt-4o-latest", ConfigError, "not pinned"),
        ("gemini:gemini-flash-latest", ConfigError, "not pinned"),
        ("gemini:gemini-2.0-flash-exp", ConfigError, "not pinned"),
        ("openai", ConfigError, "names no model"),
        ("opnai:x", UnknownNameError, "did you mean 'openai'"),
    ],
)
def test_judges_that_may_change_are_refused(spec, error, words):
    with pytest.raises(error) as caught:
        make_client(spec)
    assert words in str(caught.value)


def test_names_show_the_server_but_no_password():
    client = make_client("openai:qwen", base_url="http://user:pass@localhost:8000/v1")
    assert client.identity == "openai@localhost:8000:qwen"


def test_reasoning_models_get_the_limit_that_they_know(server):
    make_client("openai:o4-mini", base_url=f"{server.url}/v1").ask(('The prompt: "x"', *2 * (PNG,)))
    body = server.bodies[0]
    assert body["max_completion_tokens"] == 1024 and not {"temperature", "max_tokens"} & set(body)


def test_models_are_told_how_much_to_think(server):
    client = client_of(server, "gemini", reasoning_effort="none")
    client.ask(('The prompt: "x"', *2 * (PNG,)))
    assert server.bodies[0]["reasoning_effort"] == "none" and server.bodies[0]["max_tokens"] == 4096
    assert client.settings["reasoning_effort"] == "none"
    assert "reasoning_effort" not in client_of(server, "gemini").settings
