"""The upper limit: consecutive denoiser calls at full batch size, without any other work."""

from __future__ import annotations

from addiffusion_lab.bench.setup import Arm, BenchmarkSetup, RoundResult, mixed_batch


class BareDenoiser(Arm):
    """Guided evaluations of all lanes, without solver, previews or decoding."""

    name = "bare denoiser loop"

    def __init__(self, setup: BenchmarkSetup) -> None:
        self.setup, self.batch = setup, mixed_batch(setup)

    def round(self) -> RoundResult:
        """Evaluates every lane once for each step of the schedule."""
        batch = self.batch
        for _ in range(self.setup.steps):
            self.setup.backbone.predict(batch.x, batch.sigma, batch.conditioning, batch.scale)
        return RoundResult(self.setup.lanes * self.setup.steps, 0)
