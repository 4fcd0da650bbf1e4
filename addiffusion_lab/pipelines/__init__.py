"""Samplers that run a complete diffusers pipeline: LCM, SDXL Turbo, SAG, Attend-and-Excite, First-Block cache."""
