"""What a person wrote wrong, told in whole lines: the value, the rule, the choices."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

Kind = typing.TypeVar("Kind", bound=BaseModel)

FORM = "<{}>"
"""What pydantic calls a form of a value that has several; a person knows which one was meant."""

PROSE = frozenset({"prompts", "negative"})
_USER = re.compile(r"://(?:[^/\s:]*:\S*|[^/\s]+)@")
"""Up to the last @ of the word: a password may hold any character, also @ and /."""
_PASSWORD = re.compile(r"://[^/\s:]*:\S*@|https?://[^/\s]+@")
_QUERY = re.compile(
    r"([?&;#](?=[\w.-]*=)(?:[\w.-]*(?:token|key|secret|passw(?:or)?d|pwd|signature|credential)[\w.-]*|sig|x-(?:amz|goog)-[\w.-]*)=)"
    r"""\S+?(?=['")\]}>,:.]*(?:\s|$))""",
    re.IGNORECASE,
)
"""A parameter that is a secret, and all that follows it: a secret may hold an & too."""


class ConfigError(ValueError):
    """All the mistakes of one input, a line each."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))


class RunError(RuntimeError):
    """What a run needs from outside is not there: a cluster, a worker that starts, a server. One line, no bug."""


class DiskFull(RunError):
    """A file could not be written whole. What was finished is safe, and the same command goes on once there is room."""


def without_password(text: str) -> str:
    """``text`` with the user and password of every URI in it hidden, and secrets in a query; rather too much than too little."""
    return _QUERY.sub(r"\1***", re.sub(r"://\S+", _without_user, text))


def _without_user(url: re.Match[str]) -> str:
    user, query = _USER.match(url[0]), _QUERY.search(url[0])
    if user is None:
        return url[0]
    if query and query.start() < user.end():  # either may hold the other
        return "://***"
    return f"://***@{url[0][user.end() :]}"


def password_mistakes(settings: Mapping[str, typing.Any], where: str = "") -> list[str]:
    """One line for each key, dotted, whose URL holds a password: specs are copied into run folders, logs and trackers.

    What a video shows is left alone: a prompt may say what it likes.
    """
    told: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            told += password_mistakes(value, f"{where}{key}.")
        elif key not in PROSE and _holds_secret(str(value)):
            told.append(
                f"{where}{key} must not hold a password; give it to the machines in their environment{_instead(where + key)}"
            )
    return told


def _holds_secret(text: str) -> bool:
    return bool(_PASSWORD.search(text) or _QUERY.search(text))


def _instead(key: str) -> str:
    return ", as MLFLOW_TRACKING_URI" if key == "tracking.uri" else ""


def nearest(word: str, choices: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` or nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(what: str, word: str, choices: Iterable[str]) -> str:
    names = list(choices)
    return f"unknown {what} {word!r}{nearest(word, names)}; choices: {', '.join(names)}"


def from_validation(error: ValidationError, model: type[BaseModel], where: str = "", skip: str = "") -> list[str]:
    """One line for each thing pydantic refused, but those of type ``skip``; an unknown key is answered with those there are."""
    return [_line(dict(detail), model, where) for detail in error.errors() if detail["type"] != skip]


def _line(detail: dict[str, typing.Any], model: type[BaseModel], where: str) -> str:
    path = [str(part) for part in detail["loc"] if not re.fullmatch(FORM.format(r"\w+"), str(part))]
    dotted = ".".join([where, *path] if where else path)
    if detail["type"] == "extra_forbidden":
        return unknown(f"key at {dotted!r}:", path[-1], _keys(model, path[:-1]))
    if detail["type"] == "missing":
        return f"{dotted}: this key is required"
    told = f"{dotted}: {detail['msg'].removeprefix('Value error, ')}"
    whole = detail["type"] == "value_error" and not isinstance(detail["input"], str | int | float)  # the rule names its value
    return told if whole else f"{told} (got {detail['input']!r})"


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that the model at ``path`` inside ``model`` accepts."""
    current: type[BaseModel] | None = model
    for part in path:
        field = current.model_fields.get(part) if current else None
        current = _model_in(field.annotation) if field else current
    return list((current or model).model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The pydantic model named inside an annotation such as ``dict[str, Model]`` or ``Model | None``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for inner in typing.get_args(annotation) if (found := _model_in(inner))), None)


def read_model(kind: type[Kind], path: Path, what: str, again: str) -> Kind:
    """A file of JSON, which ``what`` names for people.

    Raises ValueError, saying what measures it ``again``, for one that is missing or no ``kind``.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{what} {str(path)!r} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(
            f"{what} {str(path)!r} is broken ({where}: {first['msg']}); delete it, or measure again with {again}"
        ) from error
