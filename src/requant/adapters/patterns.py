"""The names and regular expressions by which an adapter asks for modules, as peft 0.21 reads them.

One function spells each expression, for its check and for its use: what is checked is what is
matched.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from requant.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, Adapter, is_one, split_names
from requant.errors import ContractError
from requant.outside.patterns import check_patterns
from requant.wording import few, shown

NAME = re.compile(r"[\w.]+")
"""A plain name, of letters and dots, which cannot repeat itself."""

MOST_PREFIXES = 4
"""Names that a loaded model may have for its body where its files leave it out; it has one."""


def check_adapter_patterns(adapter: Adapter, tensors: Iterable[str]) -> None:
    """Refuse regular expressions of an adapter that are none, or never end on a model's modules.

    Args:
        adapter: From `read_adapter`.
        tensors: Names of the model's tensors. The modules of the adapter's own file, which may have
            any name, are matched as well.

    Raises:
        ContractError: Naming file, field and pattern; or as `body_prefixes`.
    """
    factors, _ = split_names(adapter.tensors)
    tensors = {*tensors}
    named = {name.rpartition(".")[0] for name in tensors}
    prefixes = body_prefixes(adapter, factors, tensors)
    modules = named | factors.keys() | {prefix + name for prefix in prefixes for name in named}
    config, path = adapter.config, adapter.folder / CONFIG_NAME
    found: list[tuple[str, str, str]] = []
    for field in ("target_modules", "exclude_modules"):
        if isinstance(value := config.get(field), str):
            found.append((field, value, value))
    for field in ("rank_pattern", "alpha_pattern"):
        found += [(field, key, _keyed(key)) for key in _texts(config.get(field))]
    for key in _texts(config.get("modules_to_save")):
        found.append(("modules_to_save", key, _saved(key)))
    for key in _texts(config.get("layers_pattern")):
        if "(" in key:
            raise ContractError(
                f"{path}: layers_pattern: {shown(key)} has groups; expected the name of a list of "
                "blocks, such as layers"
            )
        found.append(("layers_pattern", key, _numbered(key)))
    check_patterns(
        {
            f"{path}: {field}: {shown(value)}": pattern
            for field, value, pattern in found
            if not NAME.fullmatch(value)
        },
        modules,
    )


def body_prefixes(adapter: Adapter, modules: Iterable[str], tensors: Collection[str]) -> set[str]:
    """Return what the adapter's names begin with where the model's files leave the body's name out.

    Args:
        adapter: For the error's text.
        modules: Those that the adapter has factors of.
        tensors: Names of the model's tensors.

    Raises:
        ContractError: If there are several: the adapter is of another model.
    """
    found = {f"{name.partition('.')[0]}." for name in modules if f"{name}.weight" not in tensors}
    if len(found) > MOST_PREFIXES:
        raise ContractError(
            f"{adapter.folder / WEIGHTS_NAME}: its tensors begin with {few(sorted(found))}, which "
            "the model has nothing of; it was trained on another architecture"
        )
    return found


def is_target(config: Mapping[str, Any], module: str) -> bool:
    """Tell whether an adapter's configuration asks for a module.

    The rules of peft 0.21, tuners/tuners_utils.py `check_target_module_exists`.
    """
    saved = config.get("modules_to_save") or ()
    if _named(config.get("exclude_modules"), module) or any(
        re.match(_saved(name), module) for name in saved
    ):
        return False
    targets = config.get("target_modules")
    if isinstance(targets, str) or module in (targets or ()) or not _named(targets, module):
        return _named(targets, module)
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    for pattern in _texts(config.get("layers_pattern") or r"[^.]*"):
        if found := re.match(_numbered(pattern), module):
            return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def pattern_value(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """Look a module up in rank_pattern or alpha_pattern; peft 0.21 utils/other.py."""
    found = (
        value for pattern, value in (patterns or {}).items() if re.match(_keyed(pattern), module)
    )
    return next(found, otherwise)


def _named(names: str | Iterable[str] | None, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return is_one(module, names or ())


def _saved(name: str) -> str:
    """Spell the expression for a module of modules_to_save, and all inside of it."""
    return rf"(^|.*\.){name}($|\..*)"


def _keyed(key: str) -> str:
    """Spell the expression for a key of rank_pattern or alpha_pattern."""
    return rf"(.*\.)?({key})$"


def _numbered(blocks: str) -> str:
    """Spell the expression for a module inside a list of blocks; its group is the number."""
    return rf"(?:^|.*?\.){blocks}\.(\d+)\."


def _texts(value: Any) -> list[str]:
    """Return the texts among a value that may be one, a list of them or a mapping by them."""
    items = [value] if isinstance(value, str) else value
    return [item for item in items if isinstance(item, str)] if items else []
