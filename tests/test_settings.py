"""What is said of a setting of the wrong type or below its least value: each sentence once, for all configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pytest

from addiffusion_env.errors import ConfigError
from addiffusion_env.settings import Ge, Gt, check_arguments, check_types


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
    prices: Sequence[float | None] = (None,)
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
        ({"prices": ["cheap"]}, "job.prices must be a list of float or null, got ['cheap']"),
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
    check_types("", Settings(count=np.int64(3), rate=np.float32(1), seeds=[np.int32(1)], prices=[1, None, 0.5]))
    check_types("", Settings(rate=1, pair=[2, 3], options={"a": object()}, extra={"b": 1}, anything=object()))


def test_a_long_value_is_cut():
    with pytest.raises(ConfigError) as caught:
        check_types("", Settings(count="x" * 1000))
    assert len(caught.value.cause) < 150


@dataclass
class Ranges:
    count: Annotated[int, Ge(1)] = 1
    rate: Annotated[float | None, Gt(0.25)] = None


def test_a_number_out_of_its_range_is_refused_and_null_is_none():
    check_types("job.", Ranges())
    for changes, sentence in (
        ({"count": 0}, "job.count must be at least 1, got 0"),
        ({"rate": 0.25}, "job.rate must be above 0.25, got 0.25"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_types("job.", Ranges(**changes), "raise it")
        assert (caught.value.cause, caught.value.remedy) == (sentence, "raise it")


def test_arguments_are_checked_by_the_functions_hints():
    def term(weight: float, names: Sequence[str] = ()) -> None: ...

    check_arguments("reward term 'x'", term, {"weight": 1, "names": ["a"], "unknown": object()})
    with pytest.raises(ConfigError, match=r"names of reward term 'x' must be a list of str, got 'a'"):
        check_arguments("reward term 'x'", term, {"names": "a"})
