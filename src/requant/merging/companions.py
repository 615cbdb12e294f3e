"""What lies beside weights that were written anew: config, tokenizer, shard index."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from requant.models.folder import (
    INDEX_NAME,
    MASTER_NAME,
    copy_companions,
    copy_tokenizer,
    served_dtype,
    set_fields,
)
from requant.models.headers import headers_of, weight_files
from requant.models.tokenizer import chat_template
from requant.outside.json_text import read_object


def write_companions(
    original: Path, out: Path, fields: Mapping[str, Any], tokenizer: Path | None = None
) -> None:
    """Put everything but the weights into a folder; config.json comes last, without it none loads.

    Args:
        original: Model folder whose shards `out` has, by name.
        out: Existing folder with the weights.
        fields: Of config.json, that change; the shard index is mended with them.
        tokenizer: Folder whose tokenizer takes the place of the original's.
    """
    with TemporaryDirectory(dir=out) as name:
        ready = Path(name)
        copy_companions(original, ready, with_index=True)
        if tokenizer:
            template = chat_template(ready)
            copy_tokenizer(tokenizer, ready)
            if template is not None and chat_template(ready) is None:
                (ready / "chat_template.jinja").write_text(template)
        if fields:
            _mend_index(ready, original, out)
        set_fields(ready, fields)
        if fields.get("dtype") == "float32" or (original / MASTER_NAME).exists():
            (ready / MASTER_NAME).write_text(json.dumps({"dtype": served_dtype(original)}) + "\n")
        last = ready / "config.json"
        for path in [*(path for path in sorted(ready.iterdir()) if path != last), last]:
            path.rename(out / path.name)


def _mend_index(folder: Path, original: Path, shards: Path) -> None:
    """Bring the shard index in line with shards that gained a tensor, rows or another dtype."""
    path = folder / INDEX_NAME
    if not path.exists():
        return
    index = read_object(path)
    headers = headers_of(shards / file.name for file in weight_files(original))
    files = dict(sorted((name, header.file.name) for name, header in headers.items()))
    size = sum(header.end - header.start for header in headers.values())
    metadata = {**index.get("metadata", {}), "total_size": size}
    mended = {**index, "metadata": metadata, "weight_map": files}
    path.write_text(json.dumps(mended, indent=2) + "\n")
