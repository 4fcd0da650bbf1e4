#!/usr/bin/env bash
# huggingface_hub 2.4.0: a process's first request to the hub is preceded by one of the library's own, to
# /api/agent-harnesses: a list of coding agents, by which it names the caller in its user agent. A mirror (HF_ENDPOINT)
# without that path answers 404, nothing is cached, and every new process asks again; one that leaves it unanswered costs
# each process 3 seconds more, whatever timeout the call itself was given. HF_HUB_DISABLE_TELEMETRY=1 stops it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "huggingface_hub==2.4.0" 2>/dev/null
cat > mirror.py <<'PY'
import http.server
import json
import os
import subprocess
import sys
import threading
import time

CLIENT = """
import time
from huggingface_hub import HfApi
begun = time.monotonic()
HfApi().model_info("someone/some-model", timeout=1)
print(time.monotonic() - begun)
"""
asked, slow = [], [False]


class Mirror(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        known = self.path == "/api/models/someone/some-model"
        if slow[0] and not known:
            time.sleep(5)
        body = json.dumps({"_id": "1", "id": "someone/some-model"}).encode() if known else b""
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = {
    **os.environ,
    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    "HF_HOME": os.path.join(os.getcwd(), "home"),
    "HF_HUB_DISABLE_TELEMETRY": "0",
}


def ask(**changes):
    asked.clear()
    variables = {**environment, **changes}
    done = subprocess.run([sys.executable, "-c", CLIENT], env=variables, capture_output=True, text=True, check=True)
    return list(asked), float(done.stdout)


first, quick = ask()
print("a process asks for", first)
again, _ = ask()
print("the next process asks for", again)
silent, _ = ask(HF_HUB_DISABLE_TELEMETRY="1")
print("with HF_HUB_DISABLE_TELEMETRY=1:", silent)
slow[0] = True
_, waited = ask()
print(f"seconds of model_info(timeout=1): {quick:.1f}; of a mirror that leaves the extra request waiting: {waited:.1f}")
want = ["/api/agent-harnesses", "/api/models/someone/some-model"]
sys.exit(not (first == want and again == want and silent == want[1:] and waited - quick > 2.5))
PY
venv/bin/python mirror.py
