"""Cache of reference features on disk, keyed by the content of the images and the network's identity."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np

from addiffusion_env.errors import RunFolderError
from addiffusion_env.files import whole_file
from addiffusion_lab.metrics.images import Images
from addiffusion_lab.metrics.network import FeatureNetwork


class FeatureCache:
    """(n, dim) features of whole reference sets, one ``.npy`` file each, written atomically.

    Features are stored rather than means and covariances: FID and KID both follow from them, at 4 bytes per number
    (41,000 images x 2048: 336 MB).

    Args:
        folder: created if missing; ``None`` disables the cache.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()

    def features(self, images: Images, network: FeatureNetwork, batch: int = 32) -> np.ndarray:
        """The features of ``images``: from the cache, or computed and then stored.

        A new ``images`` object is always read to compute its hash, so that changes of a folder are detected.

        Raises:
            RunFolderError: when the cache cannot be written.
            NumericsError: when the network gives NaN or infinity.
        """
        if self.folder is not None and network.identity not in images.known:
            path = self.folder / f"{self.key(images, network)}.npy"
            kept = _read(path, (len(images), network.dim))
            if kept is None:
                _write(path, network.features(images, batch))
            else:
                images.known[network.identity] = kept
        return network.features(images, batch)

    @staticmethod
    def key(images: Images, network: FeatureNetwork) -> str:
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.save(file, features, allow_pickle=False)
    except OSError as error:
        raise RunFolderError(
            f"cannot keep reference features in {path.parent}: {error.strerror or error}", "set another cache folder"
        ) from error
