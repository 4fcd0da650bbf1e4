"""The networks whose features FID and KID compare, loaded by name, and the cache of reference features."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addiffusion_env.backbones.fingerprint import digest_of
from addiffusion_env.backbones.identity import identity_of
from addiffusion_env.errors import WeightsError
from addiffusion_env.files import whole_file, writing_to
from addiffusion_env.scorers import Embedder, read_state_dict
from addiffusion_lab.metrics import FEATURES
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.packages import INCEPTION_URL, backend_name, find_weights, load_package
from addiffusion_lab.metrics.settings import FeatureNetwork, MetricSettings


def load_features(settings: MetricSettings) -> FeatureNetwork:
    """The network that ``settings`` name.

    Raises:
        UnknownNameError: for a name that is not in ``FEATURES``.
        WeightsError: when its weights are missing or of another model.
        MissingPackageError: when its package is not installed.
    """
    if isinstance(settings.features, FeatureNetwork):
        return settings.features
    network: FeatureNetwork = FEATURES.load(settings.features)(settings)
    return network


def inception(settings: MetricSettings) -> FeatureNetwork:
    """Inception-v3's 2048-wide average pool (Heusel et al., 2017, arXiv 1706.08500), on torch-fidelity's resizing."""
    path = find_weights(settings.weights, INCEPTION_URL)
    read_state_dict(path)  # the packages unpickle any content: check that it is a state dict first
    options = {"name": "inception-v3-compat", "features_list": ["2048"], "feature_extractor_weights_path": str(path)}
    module = load_package("torch_fidelity.feature_extractor_inceptionv3")
    try:
        model = module.FeatureExtractorInceptionV3(**options).to(settings.device).eval()
    except RuntimeError as error:
        raise WeightsError(
            f"{path} holds no Inception-v3 of the original FID: {' '.join(str(error).split())[:200]}",
            f"download {INCEPTION_URL}",
        ) from error

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        output = model(pixels.to(settings.device))
        return output[0] if isinstance(output, tuple) else output

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    how = f"TensorFlow 1 bilinear of {backend_name('torch-fidelity')} on {torch.device(settings.device).type}"
    return FeatureNetwork("inception", f"inception-v3-compat 2048, {how}, sha256 {digest}", 2048, embed)


def dino(settings: MetricSettings) -> FeatureNetwork:
    """DINOv2 class tokens; without ``weights`` those of the emoji world."""
    from addiffusion_env.scorers.dino import DinoEmbedder

    return _own("dino", DinoEmbedder, settings)


def clip(settings: MetricSettings) -> FeatureNetwork:
    """CLIP image embeddings; without ``weights`` those of the emoji world."""
    from addiffusion_env.scorers.clip import ClipScorer

    return _own("clip", ClipScorer, settings)


def _own(name: str, kind: Any, settings: MetricSettings) -> FeatureNetwork:
    from addiffusion_env.backbones.emoji import WEIGHTS, verify

    folder = verify(WEIGHTS, name) if settings.weights is None else Path(settings.weights)
    return of_embedder(name, kind.from_pretrained(folder, device=settings.device), folder)


def of_embedder(name: str, embedder: Embedder, folder: Path) -> FeatureNetwork:
    """A feature network of any embedder (unit vectors, so distances are small), loaded from ``folder``.

    Its identity consists of the embedder's and the versions of its packages.
    """

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return embedder.embed_images(pixels.float() / 127.5 - 1)

    digest = digest_of(identity_of(embedder=embedder))
    return FeatureNetwork(name, f"{name} {folder.name}, unit vectors, sha256 {digest}", embedder.dim, embed)


def cached_features(folder: Path | str | None, images: Images, network: FeatureNetwork, batch: int = 32) -> np.ndarray:
    """(n, dim) features of a whole reference set: from a cache, or computed and then stored in it.

    Each set is one ``.npy`` file, written atomically. Features are stored rather than means and covariances: FID and
    KID both follow from them, at 4 bytes per number (41,000 images x 2048: 336 MB). A new ``images`` object is always
    read to compute its hash, so that changes of a folder are detected.

    Args:
        folder: of the cache; created if missing; ``None`` disables it.
        images: the reference set.
        network: the network.
        batch: images per forward pass.

    Raises:
        RunFolderError: when the cache cannot be written.
        NumericsError: when the network gives NaN or infinity.
    """
    if folder is not None and network.identity not in images.known:
        path = Path(folder).expanduser() / f"{cache_key(images, network)}.npy"
        kept = _read(path, (len(images), network.dim))
        if kept is None:
            _write(path, network.features(images, batch))
        else:
            images.known[network.identity] = kept
    return network.features(images, batch)


def cache_key(images: Images, network: FeatureNetwork) -> str:
    """64 hex digits of the images' content, in order, and of the network."""
    return hashlib.sha256(f"{images.digest()}\x1f{network.identity}".encode()).hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError) as error:
        warnings.warn(f"cached features {path} cannot be read ({error}): recomputing", stacklevel=4)
        return None
    if found.shape != shape or found.dtype != np.float32:
        warnings.warn(f"cached features {path} are {found.dtype} {found.shape}, not {shape}: recomputing", stacklevel=4)
        return None
    return found


def _write(path: Path, features: np.ndarray) -> None:
    """Two evaluations may fill one cache at the same time."""
    with writing_to(path.parent, "keep reference features in", "set another cache folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.save(file, features, allow_pickle=False)
