"""Synthetic records with planted properties."""

from addiffusion_env.evaluation.records import Record, uid_of


def record(sampler="m", prompt=0, seed=0, nfe=8.0, preference=0.0, correct=True, actions=(0, 0), **more):
    """One record; ``prompt`` is a number, and so is the task it belongs to."""
    fields = {
        "uid": uid_of(sampler, f"p{prompt:04d}", seed),
        "variant": sampler,
        "sampler": sampler,
        "backbone": "emoji",
        "prompt": f"a photo of thing {prompt}",
        "prompt_id": f"p{prompt:04d}",
        "task": ("single", "position")[prompt % 2],
        "constraints": 1 + prompt % 4,
        "seed": seed,
        "nfe": float(nfe),
        "network_calls": int(2 * nfe),
        "decisions": len(actions),
        "actions": tuple(actions),
        "refinements": sum(action == 2 for action in actions),
        "preference": float(preference),
        "clip_score": 0.25,
        "correct": correct,
        "reason": "correct" if correct else "expected 2 cats, found 1",
        "extra": {},
        "seconds": nfe / 10,
    }
    return Record(**{**fields, **more})
