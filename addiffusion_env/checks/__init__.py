"""Contracts of components, as functions that both pytest and `check NAME` call.

A contract is a function of one subject that raises :class:`addiffusion_env.errors.ContractError` when the subject
breaks it; the first line of its docstring states the promise. There is one module per kind; check your own component
with ``hold(BACKBONE_CONTRACTS, mine)``.
"""

from addiffusion_env.registry import Registry

FINDERS = Registry("kind of component", more="addiffusion_lab")
"""Kind -> a function from a name to :class:`.components.Found`, or ``None`` if the kind has no such name. The package's
kinds are in :mod:`.components`; a plugin can add more."""

TINY = Registry("collection of tiny models", more="addiffusion_lab")
"""Name -> a mapping from backbones to functions that create them with tiny random weights in a folder, and from
samplers with weights to functions that save tiny ones to a folder; ``check`` runs on these."""
