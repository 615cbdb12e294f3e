"""config.json of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ArtifactError
from requant.json_file import read_object

if TYPE_CHECKING:
    pass


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's config.json.

    Raises:
        ArtifactError: If it is missing or not a JSON object.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ArtifactError(f"{path}: is missing; {folder} is not a model folder")
    return read_object(path)


def quantization_of(config: dict[str, Any]) -> str | None:
    """Name the quantization of a model from its config.json: nf4, int8, gptq, or None.

    Raises:
        ArtifactError: On a method requant cannot load.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    method = quantization.get("quant_method")
    if method == "gptq":
        return "gptq"
    if method == "bitsandbytes":
        return "nf4" if quantization.get("load_in_4bit") else "int8"
    raise ArtifactError(
        f"config.json: quantization_config.quant_method={method!r}; expected bitsandbytes or gptq"
    )
