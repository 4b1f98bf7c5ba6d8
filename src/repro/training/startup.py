"""Importing Lightning in two thirds of the time, which every process that runs something has to.

Lightning wants two classes of torchmetrics, which begins by importing transformers, SciPy and all
its metrics. Here it begins when somebody asks for more than those two classes, and from then on is
what everybody else finds.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

# What Lightning asks for on its way, and where it comes from.
ENOUGH = {
    "__version__": "torchmetrics.__about__",
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
}


class Postponed(ModuleType):
    """A package whose ``__init__`` runs at the first use that goes beyond `ENOUGH`."""

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there yet; ``__path__`` stands for the import of a submodule."""
        if "__path__" in vars(self):  # Lightning is being imported
            if name == "_logger":
                return logging.getLogger("torchmetrics")
            if name in ENOUGH:
                if name == "Metric":
                    import_module("torchmetrics.utilities")  # the one that may come first
                return getattr(import_module(ENOUGH[name]), name)
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        assert spec.submodule_search_locations is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__path__ = spec.submodule_search_locations
        spec.loader.exec_module(self)
        return getattr(self, name)


def import_lightning() -> None:
    """Imports Lightning. Call this before its first import: afterwards it changes nothing."""
    if "lightning" in sys.modules or "torchmetrics" in sys.modules:
        return
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None
    package = importlib.util.module_from_spec(spec)
    package.__class__ = Postponed
    sys.modules["torchmetrics"] = package
    was_enabled = gc.isenabled()
    gc.disable()
    import lightning.pytorch  # noqa: F401

    gc.freeze()  # half a million objects that stay: no need to go through them again and again
    if was_enabled:
        gc.enable()
    if isinstance(package, Postponed):
        del package.__path__  # so that importing any other part of it runs the whole
