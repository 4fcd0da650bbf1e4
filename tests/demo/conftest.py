"""The shipped policy, loaded once."""

from __future__ import annotations

import pytest

from addiffusion_env.agents.pipeline import AdaptivePipeline
from addiffusion_lab.demo.takes import Studio


@pytest.fixture(scope="session")
def studio() -> Studio:
    return Studio(AdaptivePipeline.from_pretrained("emoji"))
