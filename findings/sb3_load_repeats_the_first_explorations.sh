#!/usr/bin/env bash
# stable-baselines3 2.9.2: load() of a model that was made with seed= seeds Python, NumPy, torch and the action space with
# that seed again. A training that is saved, loaded and continued therefore explores by the actions of its beginning once
# more: DQN takes its first random actions again, and PPO, as long as its policy has not changed, samples its first actions
# again. Continued in one process, both go on with new ones. The generators of the process that loads are reset as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "torch==2.14.1" "stable-baselines3==2.9.2" "gymnasium==1.4.0" 2>/dev/null
cat > continued.py <<'PY'
import sys

import gymnasium
import numpy as np
import stable_baselines3
from stable_baselines3 import DQN, PPO


class Listening(gymnasium.Env):
    """Nine actions without consequence; it keeps those that were taken."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self):
        self.action_space = gymnasium.spaces.Discrete(9)
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.taken.append(int(action))
        return np.zeros(2, np.float32), 0.0, True, False, {}


def taken(model):
    return model.env.envs[0].unwrapped.taken


print("stable-baselines3", stable_baselines3.__version__)
settings = {
    DQN: {"learning_starts": 1000},  # random actions only
    PPO: {"n_steps": 12, "batch_size": 12, "n_epochs": 1, "learning_rate": 0.0},  # the policy stays as it is
}
repeated = {}
for kind, given in settings.items():
    whole = kind("MlpPolicy", Listening(), seed=0, device="cpu", **given)
    whole.learn(12).learn(12, reset_num_timesteps=False)
    parted = kind("MlpPolicy", Listening(), seed=0, device="cpu", **given).learn(12)
    parted.save("model.zip")
    np.random.seed(99)
    loaded = kind.load("model.zip", env=Listening(), device="cpu")
    drawn = np.random.rand()
    loaded.learn(12, reset_num_timesteps=False)
    print(f"{kind.__name__} in one process: {taken(whole)[:12]} then {taken(whole)[12:]}")
    print(f"{kind.__name__} saved and loaded: {taken(parted)} then {taken(loaded)}")
    np.random.seed(99)
    repeated[kind.__name__] = taken(loaded) == taken(parted) != taken(whole)[12:] and drawn != np.random.rand()
print("the first actions again, and NumPy's generator reset:", repeated)
sys.exit(not all(repeated.values()))
PY
OMP_NUM_THREADS=1 venv/bin/python continued.py 2>/dev/null
