"""The pairwise judge: same prompt, two images, both orders; a disagreement is a tie."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from addiffusion_env.errors import ConfigError, ImageRangeError
from addiffusion_env.evaluation.statistics import score_interval
from addiffusion_env.evaluation.store import png_bytes
from addiffusion_env.files import whole_file, writing_to
from addiffusion_env.prompts import Prompt
from addiffusion_lab.metrics.images import Images, ImagesLike, content_hash, pixels_of
from addiffusion_lab.vlm.client import Reply, VlmClient
from addiffusion_lab.vlm.costs import PRICES_OF, Ledger, OverBudgetError, Price, price_of
from addiffusion_lab.vlm.retries import AttemptError, RetryPolicy, with_retries
from addiffusion_lab.vlm.verdicts import (
    CLOSING,
    OPENING,
    JudgeReport,
    PairVerdict,
    position_bias,
    question,
    read_vote,
    template_digest,
    verdict_of,
    win_rate,
)


def compare(
    a: ImagesLike,
    b: ImagesLike,
    prompts: Sequence[Prompt | str],
    client: VlmClient,
    *,
    max_cost: float,
    price: Price | None = None,
    cache: Path | str | None = None,
    retries: RetryPolicy | None = None,
    workers: int = 4,
    say: Callable[[str], None] = print,
) -> JudgeReport:
    """Has a VLM compare the images of two samplers, pair by pair, in both orders.

    Identical images are a tie without a question. A repeated call with the same
    ``cache`` pays only for missing replies.

    Args:
        a: images of one sampler; see :data:`ImagesLike`.
        b: images of another one, for the same prompts and seeds in the same order.
        prompts: one per pair; pairs of one prompt id are averaged before statistics over prompts.
        client: the judge; see :func:`addiffusion_lab.vlm.make_client`.
        max_cost: limit of this run in US dollars; it stops before the first question that might exceed it.
        price: price of the judge's tokens; ``None``: the listed one.
        cache: folder of replies; ``None`` disables it.
        retries: retry policy; ``None``: the defaults of :class:`RetryPolicy`.
        workers: number of concurrent questions.
        say: called with the estimate before the first question.

    Raises:
        ConfigError: when the numbers of images and prompts differ, or for an invalid ``max_cost`` or ``workers``.
        ImageRangeError: when the images of a pair differ in size.
        UnknownNameError: for a judge without a listed price when none is given.
        VlmServiceError: when the service refuses, or fails after all retries; replies so far are in the cache.
        RunFolderError: when the cache cannot be written.
    """
    pairs = _pairs(Images.of(a), Images.of(b), [Prompt.of(prompt) for prompt in prompts])
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}", "use 4")
    score_interval(np.zeros(1))  # raises without scipy before money is spent
    ledger = Ledger(client, price_of(client, price), max_cost)
    session = _Session(client, ReplyCache(cache), ledger, retries or RetryPolicy())
    missing = [tokens for pair in pairs for tokens in session.missing(pair)]
    estimate = sum(ledger.most(tokens) for tokens in missing)
    source = f"prices of {PRICES_OF}" if price is None else "the prices given"
    say(
        f"{client.identity}: {len(pairs)} pairs in both orders, {len(missing)} questions to ask, "
        f"at most ${estimate:.2f} by {source}; limit ${max_cost:.2f}"
    )
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(session.judge, pair) for pair in pairs]
        try:
            verdicts = tuple(future.result() for future in futures)
        except BaseException:  # also Ctrl-C: send no further questions
            session.closed.set()
            pool.shutdown(cancel_futures=True)
            raise
    return JudgeReport(
        judge=client.identity,
        served=tuple(sorted(session.served)),
        template=template_digest(),
        verdicts=verdicts,
        win_rate=win_rate(verdicts),
        position=position_bias(verdicts),
        asked=session.asked,
        cached=session.cached,
        retries=session.repeated,
        cost=ledger.spent,
        estimate=estimate,
    )


@dataclass(frozen=True)
class _Pair:
    """Two images of one prompt; read lazily to limit memory."""

    prompt: Prompt
    a: object
    b: object

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Both images as (H, W, 3) uint8."""
        first, second = pixels_of(self.a), pixels_of(self.b)  # type: ignore[arg-type]
        if first.shape != second.shape:
            raise ImageRangeError(
                f"the images of {self.prompt.text!r} are {first.shape} and {second.shape}",
                "make both at the same size: a judge notices resolution",
            )
        return first, second


def _pairs(a: Images, b: Images, prompts: Sequence[Prompt]) -> list[_Pair]:
    if not len(a) == len(b) == len(prompts):
        raise ConfigError(
            f"{len(a)} and {len(b)} images for {len(prompts)} prompts", "pass as many of each, in the same order"
        )
    return [_Pair(prompt, *items) for prompt, *items in zip(prompts, a.items, b.items, strict=True)]


@dataclass
class _Session:
    """State of the judging, shared by several threads."""

    client: VlmClient
    cache: ReplyCache
    ledger: Ledger
    policy: RetryPolicy
    closed: threading.Event = field(default_factory=threading.Event)
    asked: int = 0
    cached: int = 0
    repeated: int = 0
    served: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def missing(self, pair: _Pair) -> list[float]:
        """Estimated input tokens of each question on ``pair`` that has no cached reply."""
        first, second = pair.read()
        hashes = content_hash(first), content_hash(second)
        if hashes[0] == hashes[1]:
            return []
        keys = [self.cache.key(self.client, pair.prompt.text, *order) for order in (hashes, hashes[::-1])]
        return [self._tokens(pair.prompt, first) for key in keys if self.cache.read(key) is None]

    def judge(self, pair: _Pair) -> PairVerdict:
        """The verdict on ``pair``, from both orders."""
        shown = pair.read()
        name = pair.prompt.prompt_id
        if np.array_equal(*shown):
            return PairVerdict(name, "tie")
        try:
            forth, back = self._reply(pair.prompt, *shown), self._reply(pair.prompt, *shown[::-1])
        except OverBudgetError:
            return PairVerdict(name, "unasked")
        except BaseException:
            self.closed.set()  # the other questions would fail too
            raise
        return verdict_of(name, (read_vote(forth.text), read_vote(back.text)), (forth.text, back.text))

    def _reply(self, prompt: Prompt, first: np.ndarray, second: np.ndarray) -> Reply:
        key = self.cache.key(self.client, prompt.text, content_hash(first), content_hash(second))
        reply = self.cache.read(key)
        if reply is not None:
            self._count(cached=1, served=reply.model)
            return reply
        parts = question(prompt.text, png_bytes(first), png_bytes(second))
        tokens = self._tokens(prompt, first)

        def attempt() -> Reply:
            reserved = self.ledger.reserve(tokens)
            if self.closed.is_set():
                self.ledger.fail(reserved, billed=False)
                raise OverBudgetError
            try:
                found = self.client.ask(parts)
            except AttemptError as trouble:
                self.ledger.fail(reserved, trouble.billed)
                raise
            except BaseException:
                self.ledger.fail(reserved, billed=True)
                raise
            self.ledger.settle(reserved, tokens, found)
            return found

        reply = with_retries(
            attempt, self.policy, self.client.identity, lambda: self._count(repeated=1), sleep=self.closed.wait
        )
        self.cache.write(key, self.client, prompt.text, reply)
        self._count(asked=1, served=reply.model)
        return reply

    def _tokens(self, prompt: Prompt, image: np.ndarray) -> float:
        height, width = image.shape[:2]
        return self.ledger.input_tokens(len(OPENING) + len(CLOSING) + len(prompt.text) + 60, width, height)

    def _count(self, asked: int = 0, cached: int = 0, repeated: int = 0, served: str = "") -> None:
        with self._lock:
            self.asked += asked
            self.cached += cached
            self.repeated += repeated
            self.served |= {served} - {""}


class ReplyCache:
    """Cache of raw replies, so that verdicts can be parsed again and are paid for only once.

    Args:
        folder: created if missing; ``None`` disables the cache.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()

    @staticmethod
    def key(client: VlmClient, prompt: str, first: str, second: str) -> str:
        """64 hex digits of judge, its settings, wording, prompt and the content hashes of both images, in order."""
        asked = [client.identity, sorted(client.settings.items()), template_digest(), prompt, first, second]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def read(self, key: str) -> Reply | None:
        """The reply of ``key``, or ``None``; for an unreadable file a warning is issued and ``None`` returned."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8"))["reply"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"cached reply {path} cannot be read ({error}): asked again", stacklevel=2)
            return None

    def write(self, key: str, client: VlmClient, prompt: str, reply: Reply) -> None:
        """Stores a reply.

        Raises:
            RunFolderError: when it cannot be written.
        """
        if self.folder is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = {"judge": client.identity, "prompt": prompt, "asked_at": now, "reply": asdict(reply)}
        path = self._path(key)
        with writing_to(self.folder, "keep replies in", "set another cache folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(json.dumps(entry, ensure_ascii=False, indent=1).encode())

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"
