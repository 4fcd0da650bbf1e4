"""What every component of a kind promises, as functions that both pytest and `check NAME` call.

A contract is a function of one subject that raises :class:`addiffusion_env.errors.ContractError` when the subject
breaks it; the first line of its docstring says what is promised. One module a kind: a component of your own is held to
the same ones, ``hold(BACKBONE_CONTRACTS, mine)``.
"""
