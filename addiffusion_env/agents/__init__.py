"""Stable-Baselines3's side: vectorised environments, the policy, training's callbacks, the trained pipeline."""
