"""Parts by name: from a configuration's name and settings to a frozen dataclass, also one from outside the tree."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import ModuleType
from typing import Any

# Where module:Name is looked for by a process whose working directory is not the user's.
PARTS_FOLDER = "CONSILIUM_PARTS"
# Fields of these types are checked here; whatever else a part has it checks itself.
_PLAIN: dict[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "bool": (bool,), "str": (str,)}
_SAID = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}


def build_part(kind: str, known: Mapping[str, type], name: str, settings: Mapping[str, Any], method: str) -> Any:
    """The part `name` with its settings.

    Args:
        kind: for messages: aggregator, selector, attack.
        known: the registry; `module:Name` reaches outside of it.
        settings: values for the fields; a field whose default is itself a part takes a name or a table with a name.
        method: what the part must be able to do.

    Raises:
        KeyError: no such part.
        ValueError: a setting that it does not have, that is missing, of another type or out of its bounds.
    """
    part = part_class(kind, known, name)
    if not hasattr(part, method):
        raise ValueError(f"{kind} {name!r} has no method {method!r}")
    own = {field.name: field for field in fields(part) if field.init} if is_dataclass(part) else {}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in own:
            raise ValueError(f"{kind} {name!r} has no setting {key!r}; known: {', '.join(own) or 'none'}")
        # The type's name; without `from __future__ import annotations` it is the type itself.
        told = own[key].type if isinstance(own[key].type, str) else getattr(own[key].type, "__name__", "")
        if hasattr(own[key].default, method) or hasattr(own[key].default_factory, method):
            values[key] = build_part(kind, known, *named_table(f"{kind} {name!r}: {key}", value), method)
            continue
        if told in _PLAIN and (not isinstance(value, _PLAIN[told]) or (isinstance(value, bool) and told != "bool")):
            raise ValueError(f"{kind} {name!r}: {key}={value!r} must be {_SAID[told]}")
        values[key] = value
    for key, field in own.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{kind} {name!r} needs the setting {key!r}")
    try:
        return part(**values)
    except Exception as error:  # of a class from outside somebody else's code runs when it is made
        if name in known and isinstance(error, ValueError):
            raise  # one sentence already
        told = " ".join(f"{type(error).__name__}: {error}".split())
        way_out = "change its settings or its code" if is_dataclass(part) else "make it a frozen dataclass"
        raise ValueError(f"{kind} {name!r} cannot be made ({told}): {way_out}") from None


def part_class(kind: str, known: Mapping[str, type], name: str) -> type:
    """The class behind a name.

    Raises:
        KeyError: no such part; the message lists the known ones.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise KeyError(
            f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}; your own: module:Name, the module in the "
            "working directory or on PYTHONPATH"
        )
    try:
        found = getattr(_users_module(module), attribute)
    except Exception as error:  # somebody else's code runs when it is imported
        raise KeyError(
            f"{kind} {name!r} cannot be imported ({type(error).__name__}: {error}): the module must stand in the "
            "working directory or on PYTHONPATH"
        ) from None
    if not isinstance(found, type):
        raise KeyError(f"{kind} {name!r} is no class: name the class, its settings are its fields")
    return found


def _users_module(name: str) -> ModuleType:
    """A module by name, also from the working directory, which a console script does not look into by itself.

    It comes last: what lies there adds modules and hides none.
    """
    here = os.environ.get(PARTS_FOLDER) or os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def named_table(where: str, told: Any, what: str = "a name") -> tuple[str, dict[str, Any]]:
    """The name and the settings of a part that is told by its name, or as a table with a name.

    Raises:
        ValueError: it is neither; `where` and `what` are for the message.
    """
    table = {"name": told} if isinstance(told, str) else told
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise ValueError(f"{where}={told!r} must be {what}, or a table with a name")
    return table["name"], {key: value for key, value in table.items() if key != "name"}
