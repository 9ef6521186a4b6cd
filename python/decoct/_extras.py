"""Import of optional dependencies at the moment they are used."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str = "demo") -> Any:
    """Import `module`; where it is missing, raise ImportError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise ImportError(f'{top} is not installed: pip install "decoct[{extra}]"', name=top) from error
