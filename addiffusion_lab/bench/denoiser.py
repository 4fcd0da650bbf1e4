"""The limit: one denoiser call after another at full batch, with nothing around it."""

from __future__ import annotations

from addiffusion_lab.bench.bed import Arm, Bed, Done, mixed_batch


class BareDenoiser(Arm):
    """Guided evaluations of all lanes, no solver, no looks, no decodes."""

    name = "bare denoiser loop"

    def __init__(self, bed: Bed) -> None:
        self.bed, self.batch = bed, mixed_batch(bed)

    def round(self) -> Done:
        """One evaluation of every lane for each step of the schedule."""
        batch = self.batch
        for _ in range(self.bed.steps):
            self.bed.backbone.predict(batch.x, batch.sigma, batch.conditioning, batch.scale)
        return Done(self.bed.lanes * self.bed.steps, 0)
