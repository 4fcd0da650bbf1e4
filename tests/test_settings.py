"""Errors for settings of the wrong type or out of range: each message once, for all configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest

from addiffusion_env.errors import ConfigError
from addiffusion_env.settings import Ge, Gt, check_arguments, check_types
from addiffusion_env.settings import Settings as Base


@dataclass
class Settings:
    count: int = 1
    rate: float = 0.5
    name: str = "a"
    flag: bool = False
    folder: str | None = None
    size: int | str = "auto"
    pair: tuple[int, float] = (1, 0.5)
    seeds: Sequence[int] = (0,)
    costs_per_nfe: Sequence[float | None] = (None,)
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, int] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": "many"}, "job.count must be int, got 'many'"),
        ({"count": 1.5}, "job.count must be int, got 1.5"),
        ({"count": True}, "job.count must be int, got True"),
        ({"rate": float("nan")}, "job.rate must be float, got nan"),
        ({"rate": False}, "job.rate must be float, got False"),
        ({"name": None}, "job.name must be str, got None"),
        ({"flag": "no"}, "job.flag must be bool, got 'no'"),
        ({"folder": 3}, "job.folder must be str or null, got 3"),
        ({"size": 0.5}, "job.size must be int or str, got 0.5"),
        ({"pair": (1,)}, "job.pair must be tuple, got (1,)"),
        ({"pair": ("a", 1)}, "job.pair must be tuple, got ('a', 1)"),
        ({"seeds": 0}, "job.seeds must be a list of int, got 0"),
        ({"seeds": "0"}, "job.seeds must be a list of int, got '0'"),
        ({"seeds": [0, "1"]}, "job.seeds must be a list of int, got [0, '1']"),
        ({"costs_per_nfe": ["cheap"]}, "job.costs_per_nfe must be a list of float or null, got ['cheap']"),
        ({"options": [1]}, "job.options must be mapping, got [1]"),
        ({"options": {1: 2}}, "job.options must be mapping, got {1: 2}"),
        ({"extra": {"a": "b"}}, "job.extra must be mapping or null, got {'a': 'b'}"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(changes, sentence):
    with pytest.raises(ConfigError) as caught:
        check_types("job.", Settings(**changes))
    assert (caught.value.cause, caught.value.remedy) == (sentence, "see Settings")
    with pytest.raises(ConfigError) as caught:
        check_types("", Settings(**changes), "see configs/job.yaml")
    assert (caught.value.cause, caught.value.remedy) == (sentence.removeprefix("job."), "see configs/job.yaml")


def test_numbers_of_numpy_and_any_sequence_pass():
    check_types("", Settings())
    check_types("", Settings(count=np.int64(3), rate=np.float32(1), seeds=[np.int32(1)], costs_per_nfe=[1, None, 0.5]))
    check_types("", Settings(rate=1, pair=[2, 3], options={"a": object()}, extra={"b": 1}, anything=object()))


def test_a_long_value_is_truncated():
    with pytest.raises(ConfigError) as caught:
        check_types("", Settings(count="x" * 1000))
    assert len(caught.value.cause) < 150


@dataclass(frozen=True)
class Recording(Base):
    section: ClassVar[str] = "recording"
    see: ClassVar[str] = "see the docs"
    retired: ClassVar[dict[str, str]] = {"photos": "write images"}

    folder: str
    images: Annotated[int | str | None, Ge(1)] = None
    scale: Annotated[float, Gt(0)] = 1.0


def test_settings_are_read_from_a_mapping_or_returned_unchanged():
    made = Recording.of({"folder": "x", "images": 1})
    assert made == Recording("x", 1) and Recording.of(made) is made
    assert Recording("x", "all").images == "all", "a range is of numbers"


@pytest.mark.parametrize(
    ("given", "cause", "remedy"),
    [
        ({"folder": "x", "images": 0}, "recording.images must be at least 1, got 0", "see the docs"),
        ({"folder": "x", "scale": 0}, "recording.scale must be above 0, got 0", "see the docs"),
        ({"folder": "x", "images": 1.5}, "recording.images must be int or str or null, got 1.5", "see the docs"),
        ({"images": 1}, "recording needs recording.folder", "see the docs"),
        ({"folder": "x", "photos": 1}, "recording.photos has been removed", "write images"),
        ({"floder": "x"}, "recording has no setting 'floder'", "did you mean 'folder'? known: folder, images, scale"),
        ("x", "recording must be a mapping, got 'x'", "see the docs"),
    ],
)
def test_invalid_settings_are_refused(given, cause, remedy):
    with pytest.raises(ConfigError) as caught:
        Recording.of(given)
    assert (caught.value.cause, caught.value.remedy) == (cause, remedy)


def test_arguments_are_checked_by_the_functions_hints():
    def term(weight: float, names: Sequence[str] = ()) -> None: ...

    check_arguments("reward term 'x'", term, {"weight": 1, "names": ["a"], "unknown": object()})
    with pytest.raises(ConfigError, match=r"names of reward term 'x' must be a list of str, got 'a'"):
        check_arguments("reward term 'x'", term, {"names": "a"})
