"""PPO on the emoji environment learns the optimal behaviour of a reward in a few updates.

Two rewards of the same environment have opposite known optima. If an evaluation costs more than any image is worth, it
is optimal to stop at once; if evaluations are rewarded, to take the whole schedule.
"""

import pytest
import torch
from sb3_contrib import MaskablePPO

from addiffusion_env import AdDiffusionVecEnv
from addiffusion_env.agents.policy import MaskableAdDiffusionPolicy

STOP = 1
PPO = {"n_steps": 8, "batch_size": 32, "n_epochs": 8, "learning_rate": 3e-3, "gamma": 1.0, "seed": 0, "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize(("cost", "stops_at_once"), [(4.0, True), (-4.0, False)])
def test_ppo_learns_from_what_an_evaluation_costs(cost, stops_at_once):
    """The probability of stopping at the first decision, before and after 16 decisions in each of 8 lanes."""
    reward = {"terminal_bonus": 1.0, "nfe_cost": cost}
    env = AdDiffusionVecEnv(8, steps=4, early_exit_steps=1, refine="off", reward=reward, cost_per_nfe=1.0)
    model = MaskablePPO(MaskableAdDiffusionPolicy, env, **PPO)
    first = {key: torch.as_tensor(value) for key, value in env.reset().items()}

    def stopping():
        with torch.no_grad():
            legal = env.action_masks()
            return float(model.policy.get_distribution(first, legal).distribution.probs[:, STOP].mean())

    before = stopping()
    model.learn(128)
    env.close()
    assert before == pytest.approx(0.5, abs=0.1)
    assert (stopping() > 0.85) if stops_at_once else (stopping() < 0.15)
