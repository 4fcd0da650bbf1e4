"""The limit: one denoiser call after another at full batch, with nothing around it."""

from __future__ import annotations

from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, Done, mixed_batch


class BareDenoiser(Arm):
    """Guided evaluations of all lanes, no solver, no looks, no decodes."""

    name = "bare denoiser loop"

    def __init__(self, setup: BenchmarkSetup) -> None:
        self.setup, self.batch = setup, mixed_batch(setup)

    def round(self) -> Done:
        """One evaluation of every lane for each step of the schedule."""
        batch = self.batch
        for _ in range(self.setup.steps):
            self.setup.backbone.predict(batch.x, batch.sigma, batch.conditioning, batch.scale)
        return Done(self.setup.lanes * self.setup.steps, 0)
