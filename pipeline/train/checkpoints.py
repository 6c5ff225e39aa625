"""Checkpoints of unfinished trainings: written atomically, and read without running any code that they contain."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import shown, writing
from pipeline.core.intact import damaged
from pipeline.core.shortage import pass_on

NUMBERS = (np.int64, np.float64, np.float32, np.int32)
ARRAYS: list[Any] = [np.array(0).__reduce__()[0], np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in NUMBERS)]
"""The types that torch must allow, beyond its defaults, to load the arrays that History keeps in a checkpoint."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints to a temporary file in the same folder and renames it.

    Lightning uses the system's temporary folder. If that is on another disk, the file is copied, and a kill may leave
    an incomplete copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint atomically.

        Raises:
            PipelineError: it cannot be written, for instance on a full disk; the previous checkpoint is unchanged.
        """
        with writing(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch raises this for errors of the file system
                pass_on(error)
                raise PipelineError(f"{shown(Path(path))} could not be written: {first_line(error)}.") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Returns a checkpoint; see read_checkpoint."""
        return read_checkpoint(Path(path), map_location or "cpu")


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Returns a checkpoint of Lightning, which may hold only tensors, numbers and texts.

    The checksums of the file, a zip archive, are checked here, because torch does not check them.

    Raises:
        PipelineError: the file is damaged, or holds objects that could only be loaded by running code.
    """
    remedy = f"restore the file, or delete the folder {shown(path.parent)} to train again"
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise damaged(path, f"the checksum of {broken} is wrong", remedy)
        with torch.serialization.safe_globals(ARRAYS):
            content = torch.load(path, map_location, weights_only=True)
    except PipelineError:
        raise
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # zipfile, zlib, pickle and torch raise many types on a damaged file
        unsafe = "Unsupported global" in str(error) or "Unsupported class" in str(error) or "GLOBAL" in str(error)
        fault = "it holds objects other than numbers and texts, which are not loaded" if unsafe else error
        raise damaged(path, fault, remedy) from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise damaged(path, "it is not a checkpoint of a training", remedy)
    return content
