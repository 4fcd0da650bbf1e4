"""The emoji world: what belongs to its images besides the model. Loaded by name from its backbone's traits."""
