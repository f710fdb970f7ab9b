"""Built-in model types: how they describe themselves. What runs them is `swamp_worker.execution`.

Importing this is cheap: the command line validates definitions and describes types with it.
"""

from collections.abc import Mapping
from typing import Any, Final

from swamp_worker.models.files import FileRead, FileWrite
from swamp_worker.models.http_request import HttpRequest
from swamp_worker.models.interface import ModelType
from swamp_worker.models.shell import SHELL
from swamp_worker.sdk.declarations import declared


def own_type(cls: type[Any]) -> ModelType:
    """A type that comes with swamp and is written with the SDK: it has an entry and no bundle."""
    said = declared(cls)
    assert said is not None
    return said.model_type(f"{cls.__module__.replace('.', '/')}.py:{cls.__name__}")


BUILT_IN: Final[Mapping[str, ModelType]] = {
    model_type.name: model_type for model_type in (SHELL, *map(own_type, (HttpRequest, FileWrite, FileRead)))
}
"""Every type that needs no extension, by name."""
