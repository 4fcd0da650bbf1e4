"""Driving a diffusers pipeline by its own ``__call__``: open calls, joined network calls, its scheduler's steps."""
