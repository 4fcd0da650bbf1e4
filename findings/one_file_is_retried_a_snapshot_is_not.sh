#!/usr/bin/env bash
# huggingface_hub 2.4.0 without network and without a cached file: hf_hub_download retries five times, after 1, 2, 4, 8
# and 8 s, before it says that there is no connection; snapshot_download of the same repository asks once
# and fails at once. What both raise is an EntryNotFoundError too, by name "the repository has no such file".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "huggingface_hub==2.4.0" 2>/dev/null
export HF_HOME="$folder/hf" HF_ENDPOINT=http://127.0.0.1:9 HF_HUB_OFFLINE=0 NO_PROXY=127.0.0.1
cat > ask.py <<'PY'
import logging
import sys

import huggingface_hub
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

waits = []
logging.getLogger("huggingface_hub").addHandler(
    type("Count", (logging.Handler,), {"emit": lambda self, record: waits.append(record.getMessage())})()
)
print("huggingface_hub", huggingface_hub.__version__)
retried = {}
for ask in (snapshot_download, lambda repo: hf_hub_download(repo, "config.json")):
    waits.clear()
    name = getattr(ask, "__name__", "").replace("<lambda>", "hf_hub_download")
    try:
        ask("someone/model")
    except Exception as error:
        cause = type(error.__cause__).__name__
        retried[name] = sum("Retrying in" in line for line in waits)
        missing = isinstance(error, EntryNotFoundError)
        print(f"{name}: {retried[name]} retries, {type(error).__name__} from {cause}, an EntryNotFoundError: {missing}")
sys.exit(retried != {"snapshot_download": 0, "hf_hub_download": 5})
PY
venv/bin/python ask.py 2>/dev/null
