#!/usr/bin/env bash
# sb3-contrib 2.9.2: MaskablePPO and RecurrentPPO divide the advantages of a minibatch by their standard deviation also
# where the minibatch holds one decision, whose standard deviation is NaN. With 3 environments of 3 steps and
# batch_size=8 the ninth decision is such a minibatch: every weight of the policy is NaN afterwards, without an error
# or a warning, and learn() returns. PPO of stable-baselines3 2.9.2, from which both are derived, warns about the
# truncated minibatch when it is made and leaves a single advantage as it is. A batch_size that divides n_steps x
# n_envs, or leaves a remainder of two or more, avoids it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "sb3-contrib==2.9.2" "stable-baselines3==2.9.2" "gymnasium==1.4.0" 2>/dev/null
cat > batch_of_one.py <<'PY'
import sys
import warnings

import sb3_contrib
import stable_baselines3
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env


def learned(algorithm, policy, batch_size):
    """(whether all weights are finite after nine decisions, whether a warning named the minibatch)."""
    env = make_vec_env(lambda: InvalidActionEnvDiscrete(dim=4, n_invalid_actions=1), n_envs=3, seed=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = algorithm(policy, env, n_steps=3, batch_size=batch_size, n_epochs=1, seed=0, device="cpu")
        model.learn(9)
    finite = all(bool(weights.isfinite().all()) for weights in model.policy.parameters())
    return finite, any("mini-batch" in str(one.message) for one in said)


print("sb3-contrib", sb3_contrib.__version__, "stable-baselines3", stable_baselines3.__version__)
expected = {PPO: (True, True), MaskablePPO: (False, False), RecurrentPPO: (False, False)}
as_described = True
for algorithm, found in expected.items():
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    whole, divided = learned(algorithm, policy, 9), learned(algorithm, policy, 8)
    print(f"{algorithm.__name__}: (finite, warned) with batches of 9: {whole}, of 8 and 1: {divided}")
    as_described = as_described and whole == (True, False) and divided == found
sys.exit(not as_described)
PY
OMP_NUM_THREADS=1 venv/bin/python batch_of_one.py
