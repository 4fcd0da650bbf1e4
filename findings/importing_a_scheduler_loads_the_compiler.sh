#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.14.1: `from diffusers import DDIMScheduler`, a class of arithmetic on tensors, imports
# torch._dynamo (and with it torch._inductor and sympy), a thousand modules, in every process, compiled or not: of the
# memory of a process that only imports the scheduler, some 150 MiB. diffusers.utils.torch_utils imports
# torch._dynamo.allow_in_graph on the way. Leaving that line out would not help a model: diffusers.hooks decorates
# methods with torch.compiler.disable, and this decorator imports torch._dynamo when it is applied, so any class of any
# library that uses it pays the same at import. Of interest to whoever counts the memory of many small worker processes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "torch==2.14.1" "diffusers==0.42.1" 2>/dev/null
cat > loaded.py <<'PY'
"""Prints, for one statement after `import torch`, which compiler modules it loads and the memory it adds."""
import sys

import torch


def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024


compiler = ("torch._dynamo", "torch._inductor", "sympy")
assert not any(name in sys.modules for name in compiler)
modules, memory = len(sys.modules), resident()
exec(sys.argv[1])
print(all(name in sys.modules for name in compiler), len(sys.modules) - modules, round(resident() - memory))
PY
cat > finding.py <<'PY'
import subprocess
import sys

import diffusers
import torch

print("diffusers", diffusers.__version__, "torch", torch.__version__)
as_described = True
for statement in (
    "from diffusers import DDIMScheduler",
    "torch.compiler.disable(lambda tensor: tensor)",
    "torch.no_grad()(lambda tensor: tensor)",
):
    found = subprocess.run([sys.executable, "loaded.py", statement], capture_output=True, text=True, check=True)
    loaded, modules, memory = found.stdout.split()
    print(f"{statement}: compiler loaded: {loaded}, {modules} modules and {memory} MiB more")
    as_described = as_described and (loaded == "True" and int(memory) > 80) == ("no_grad" not in statement)
sys.exit(not as_described)
PY
OMP_NUM_THREADS=1 venv/bin/python finding.py
