#!/usr/bin/env bash
# statsmodels 0.15.0: multipletests(method="holm") runs Python's full garbage collection in every call, Bonferroni's
# and Simes-Hochberg's do not. Its time is therefore that of everything else that the process holds: 13 p-values take
# .02 ms of arithmetic, and some 50 ms in a program that has imported no more than statsmodels, 100 ms beside a
# million lists. A simulation that corrects its p-values in each of thousands of draws spends nearly all of its time
# there. gc.disable() does not help, since the collection is asked for by name; gc.freeze() before the loop does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "statsmodels==0.15.0" "numpy==2.4.6" "scipy==1.17.1" "pandas==3.1.1" 2>/dev/null
cat > corrected.py <<'PY'
import gc
import sys
import time

import numpy as np
import statsmodels
from statsmodels.stats.multitest import multipletests

p_values = np.random.default_rng(0).uniform(size=13)
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]) if phase == "start" else None)


def milliseconds(method="holm", calls=20):
    started = time.process_time()
    for _ in range(calls):
        multipletests(p_values, method=method)
    return 1000 * (time.process_time() - started) / calls


print("statsmodels", statsmodels.__version__)
gc.collect()
gc.disable()
whole = {}
for method in ("holm", "bonferroni", "simes-hochberg"):
    collections.clear()
    multipletests(p_values, method=method)
    whole[method] = collections.count(2)
print("full collections in one call, with the collector disabled:", whole)
few, other = milliseconds(), milliseconds("bonferroni")
kept = [[number] for number in range(1_000_000)]  # what any larger program holds
many = milliseconds()
gc.freeze()
frozen = milliseconds()
print(
    f"milliseconds of a call: bonferroni {other:.2f}, holm {few:.2f}, beside a million lists {many:.2f}, "
    f"after gc.freeze() {frozen:.2f}"
)
as_described = whole == {"holm": 1, "bonferroni": 0, "simes-hochberg": 0} and few > 20 * other and few > 20 * frozen
sys.exit(not as_described)
PY
OMP_NUM_THREADS=1 venv/bin/python corrected.py
