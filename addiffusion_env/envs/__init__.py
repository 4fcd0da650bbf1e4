"""Gymnasium environments over the engine of lanes."""
