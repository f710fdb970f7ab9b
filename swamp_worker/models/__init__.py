"""Built-in model types: how they describe themselves. What runs them is `swamp_worker.execution`.

Importing this is cheap: the command line validates definitions and describes types with it.
"""

from collections.abc import Mapping
from typing import Final

from swamp_worker.models.interface import ModelType
from swamp_worker.models.shell import SHELL

BUILT_IN: Final[Mapping[str, ModelType]] = {model_type.name: model_type for model_type in (SHELL,)}
"""Every type that needs no extension, by name."""
