"""lm-eval task files of the user's own: looked at before lm-eval reads them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from requant.errors import ConfigError
from requant.outside.yaml_text import Function, MalformedYaml, dump_yaml, parse_yaml
from requant.wording import few, shown

FOLDER = "own"
SUFFIXES = (".yaml", ".yml")


def own_tasks(folder: Path, *, code: bool) -> dict[str, Path]:
    """Check the task files of a folder.

    Args:
        folder: Of lm-eval YAML files, with data and code beside them.
        code: They may name functions of Python files, which lm-eval then runs.

    Returns:
        Task, group or tag -> the file that defines it.

    Raises:
        ConfigError: Naming the file, what is wrong with it and the way out.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"evaluate.task_folder: {folder} is no folder; give one with lm-eval task files (.yaml)"
        )
    names: dict[str, Path] = {}
    for path, content in _files(folder):
        functions = [str(found) for found in _functions(content)]
        if functions and not code:
            raise ConfigError(
                f"evaluate.task_folder: {path} names functions ({few(functions)}), and lm-eval "
                "runs their Python file; evaluate.task_code: true allows it"
            )
        for outer in _outside(folder, path, content):
            raise ConfigError(
                f"evaluate.task_folder: {path} reads {shown(outer)}, which lies outside of the "
                "folder, so that nobody would see it change; put it into the folder"
            )
        for field in ("task", "group"):
            name = content.get(field)
            if not isinstance(name, str):
                continue
            if name in names:
                raise ConfigError(
                    f"evaluate.task_folder: {path} and {names[name]} both define {name!r}; rename "
                    "one of them"
                )
            names[name] = path
    if not names:
        raise ConfigError(
            f"evaluate.task_folder: {folder} defines no task; expected .yaml files with a field "
            "`task`, as `lm_eval --include_path` takes them"
        )
    return names


def copy_own_tasks(folder: Path, work: Path) -> None:
    """Copy the files to where lm-eval finds them, with the paths of their data written out.

    A path is relative to its task file; lm-eval would take it relative to where it was started.

    Args:
        folder: As `own_tasks`.
        work: Gets a folder `own`.
    """
    target = work / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    for path, content in _files(target):
        arguments = content.get("dataset_kwargs")
        if isinstance(arguments, dict) and "data_files" in arguments:
            files = _absolute(arguments["data_files"], path.parent)
            content["dataset_kwargs"] = {**arguments, "data_files": files}
            content["dataset_kwargs"]["cache_dir"] = str(work / "datasets")
            path.write_text(dump_yaml(content))


def _files(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        try:
            content = parse_yaml(path.read_text(encoding="utf-8"), functions=True)
        except (MalformedYaml, UnicodeDecodeError) as error:
            raise ConfigError(f"evaluate.task_folder: {path} is no YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(
                f"evaluate.task_folder: {path} holds {type(content).__name__}; expected the fields "
                "of a task"
            )
        yield path, content


def _functions(value: Any) -> Iterator[Function]:
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _functions(item)
    elif isinstance(value, list):
        for item in value:
            yield from _functions(item)


def _outside(folder: Path, path: Path, content: dict[str, Any]) -> Iterator[str]:
    """List the files a task file reads that are not in its folder: their bytes are in no key."""
    included = content.get("include") or []
    arguments = content.get("dataset_kwargs")
    files = arguments.get("data_files") if isinstance(arguments, dict) else None
    for name in [*_names(included), *_names(files)]:
        if "://" not in name and not (path.parent / name).resolve().is_relative_to(
            folder.resolve()
        ):
            yield name


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _names(item)
    elif isinstance(value, list):
        for item in value:
            yield from _names(item)


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _absolute(item, folder) for name, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return value if "://" in value else str((folder / value).resolve())
