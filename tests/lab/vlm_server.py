"""A real HTTP server that speaks OpenAI's protocol, as Gemini's second endpoint does, and judges by brightness."""

import base64
import contextlib
import io
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from addiffusion_lab.vlm import make_client
from addiffusion_lab.vlm.costs import Price
from addiffusion_lab.vlm.judge import compare
from addiffusion_lab.vlm.retries import RetryPolicy

PATHS = {"openai": "/v1", "gemini": "/v1beta/openai"}
INPUT_TOKENS, OUTPUT_TOKENS = 700, 20
PATIENCE = 30.0
QUICK = RetryPolicy(attempts=3, base=0.01, longest=0.05, patience=1.0)
DEAR = Price(1000.0, 1000.0)
COST = DEAR.of(INPUT_TOKENS, OUTPUT_TOKENS)
SERVICES = ("openai", "gemini")


def by_brightness(prompt, first, second):
    """An honest judge: the brighter image is better."""
    if abs(first - second) < 1:
        return "Both are as bright. VERDICT: TIE"
    return f"Brightness decides.\n**VERDICT: {'FIRST' if first > second else 'SECOND'}**"


class JudgeServer:
    """Serves on a free local port.

    Attributes:
        judge: (prompt, brightness of the first, of the second) -> the reply's text.
        faults: served before any answer: ``(status, headers, body)``, ``drop``, or ``slow`` (none until closing).
        requests: how many came, by protocol.
        keys: the keys that came with them.
        bodies: the decoded requests.
        together: a ``threading.Barrier`` that every answer passes, or ``None``.
    """

    def __init__(self, judge=by_brightness):
        self.judge, self.faults, self.requests, self.keys, self.bodies = judge, [], Counter(), set(), []
        self.lock, self.closing, self.together = threading.Lock(), threading.Event(), None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path, headers, body):
        """``(status, headers, body)`` of a request."""
        service = next((name for name in PATHS if path == f"{PATHS[name]}/chat/completions"), path)
        with self.lock:
            self.requests[service] += 1
            self.keys.add(headers.get("authorization", "").removeprefix("Bearer "))
            self.bodies.append(body)
            fault = self.faults.pop(0) if self.faults else None
        if fault == "slow":
            self.closing.wait(PATIENCE)
        elif fault is not None:
            return fault
        if self.together is not None:
            self.together.wait(PATIENCE)
        texts, images = read(body)
        prompt = json.loads(re.search(r'The prompt: (".*")', texts[0]).group(1))
        text = self.judge(prompt, *(float(image.mean()) for image in images))
        return 200, {}, json.dumps(write(text, body["model"], thoughts=5 if service == "gemini" else 0))

    def _handler(self):
        server = self  # the handler's own samplers have another self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                found = server.answer(self.path, headers, body)
                if found == "drop":
                    self.close_connection = True
                    return
                status, headers, text = found
                with contextlib.suppress(OSError):  # a client that gave up waiting
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(text.encode())))
                    self.end_headers()
                    self.wfile.write(text.encode())

            def log_message(self, *arguments):
                pass

        return Handler


def decode(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def read(body):
    content = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    texts = [part["text"] for part in content if part["type"] == "text"]
    return texts, [decode(url.removeprefix("data:image/png;base64,")) for url in urls]


def write(text, model, thoughts=0):
    """An answer; what a Gemini model thought is counted in the total only."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS - thoughts,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }


def client_of(server, service="openai", **options):
    model = "judge-1" if service == "openai" else "gemini-judge"
    return make_client(f"{service}:{model}", base_url=f"{server.url}{PATHS[service]}", **options)


def grey(*levels, size=16):
    """One flat image a level of brightness."""
    return np.stack([np.full((size, size, 3), level, dtype=np.uint8) for level in levels])


def judged(server, a, b, prompts=None, service="openai", said=None, **options):
    prompts = prompts or [f"prompt {number}" for number in range(len(a))]
    return compare(
        a,
        b,
        prompts,
        client_of(server, service),
        **{"max_cost": 1000.0, "price": DEAR, "retries": QUICK, "say": (said if said is not None else []).append}
        | options,
    )
