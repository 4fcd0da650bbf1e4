"""What every component of a kind promises, as functions that both pytest and `check NAME` call.

A contract is a function of one subject that raises :class:`addiffusion_env.errors.ContractError` when the subject
breaks it; the first line of its docstring says what is promised. One module a kind: a component of your own is held to
the same ones, ``hold(BACKBONE_CONTRACTS, mine)``.
"""

from addiffusion_env.registry import Registry

FINDERS = Registry("kind of component", more="addiffusion_lab")
"""Kind -> a function from a name to :class:`.components.Found`, or ``None`` where the kind has no such name. Those of
the package are in :mod:`.components`; a plugin adds its own kinds."""

TINY = Registry("collection of tiny models", more="addiffusion_lab")
"""A name -> a mapping from backbones to functions that make them with tiny random weights in a folder, and from samplers
with weights of their own to functions that save tiny ones to a folder; ``check`` runs on these."""
