"""Distributed rollouts and evaluation with Ray: a pool of actors that are started, called, and replaced when lost."""
