"""The engine of lanes: one denoiser call for all lanes, each at its own noise level."""
