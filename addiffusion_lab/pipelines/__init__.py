"""Samplers that run a diffusers pipeline as a whole: LCM, SDXL Turbo, SAG, Attend-and-Excite, first-block cache."""
