"""Networks out of checkpoints, whole: diffusers and transformers fill in at random what a checkpoint lacks, or leave it empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def pretrained(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of the class ``kind``, on the CPU, to be evaluated. Raises ValueError if its folder does not hold all of it."""
    try:
        network, told = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:  # as a bad checkpoint shows
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{str(folder)!r} does not load as a {kind.__name__}: {' '.join(str(error).split())[:300]}") from error
    if lost := sorted(key for key in told["missing_keys"] if "lm_head" not in key):  # nobody asks a text encoder for words
        raise ValueError(f"{str(folder)!r} lacks {len(lost)} tensors of a {kind.__name__}, {lost[0]!r} first")
    return network.eval()
