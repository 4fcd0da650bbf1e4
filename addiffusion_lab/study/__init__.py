"""The study behind ``docs/results.md``: one command records, trains, compares and writes it down.

python -m addiffusion_lab.study --out runs/study     (goes on where it was killed)
"""
