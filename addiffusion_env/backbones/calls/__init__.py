"""Drives a diffusers pipeline through its own ``__call__``: open calls, joined network calls, scheduler steps."""
