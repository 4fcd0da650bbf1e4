"""The four claims, judged from records alone. A new claim is one file and one line here.

H1: the policy is not inferior to the full schedule, alone or tried again, at a small mean NFE. H2: it is better than
every comparator at equal NFE (and, apart, than fixed steps at equal seconds). H3: it spends more on prompts that ask
for more. H4: its refinement is worth its NFE.
"""

from addiffusion_env.registry import Registry

HYPOTHESES = Registry(
    "hypothesis",
    {
        "H1": "addiffusion_lab.claims.h1_non_inferiority:judge",
        "H2": "addiffusion_lab.claims.equal_cost:judge_frontier",
        "H2_seconds": "addiffusion_lab.claims.equal_cost:judge_seconds",
        "H3": "addiffusion_lab.claims.h3_difficulty:judge",
        "H4": "addiffusion_lab.claims.equal_cost:judge_refinement",
    },
)
"""Name -> a pure function from a :class:`~addiffusion_lab.claims.base.Case` to a ``Verdict``."""
