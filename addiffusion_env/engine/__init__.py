"""The engine of lanes: one denoiser call for all lanes, each at its own noise level."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Counts of the engine's work since it was created.

    Attributes:
        denoiser_batches: batched calls of the denoiser.
        denoiser_rows: rows in them, i.e. network calls; a guided evaluation counts two.
        evaluations: evaluations requested by lanes.
        looks: previews decoded and scored.
        score_batches: batches of previews.
        decodes: images decoded by the full decoder.
        decode_batches: batches of decoded images.
        busy: lanes occupied, summed over denoiser calls.
        capacity: lanes available, summed over denoiser calls.
        queued_busy: the part of ``busy`` counted while coroutines were waiting for a lane.
        queued_capacity: the part of ``capacity`` counted while coroutines were waiting for a lane.
    """

    denoiser_batches: int = 0
    denoiser_rows: int = 0
    evaluations: int = 0
    looks: int = 0
    score_batches: int = 0
    decodes: int = 0
    decode_batches: int = 0
    busy: int = 0
    capacity: int = 0
    queued_busy: int = 0
    queued_capacity: int = 0

    @property
    def utilisation(self) -> float:
        """Fraction of lanes occupied, in [0, 1]; includes the end of a run, when lanes run empty."""
        return self.busy / self.capacity if self.capacity else 0.0

    @property
    def queued_utilisation(self) -> float:
        """The same while coroutines were waiting for a lane, in [0, 1]; 0 if none ever waited."""
        return self.queued_busy / self.queued_capacity if self.queued_capacity else 0.0
