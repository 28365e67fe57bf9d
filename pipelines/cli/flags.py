"""Parses arguments into configs. An error is one line that names the nearest valid choice."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

Config = TypeVar("Config")


def parse(config_type: type[Config], arguments: Sequence[str], *, prog: str, default: Config | None = None) -> Config:
    """Parse flags into a config. The strings under its fields are the help. ValueError for an unknown flag or an
    invalid value.

    `--verify` alone means `--verify True`, and `--no-verify` means `--verify False`.
    """
    import tyro

    flags = flags_of(config_type)
    spelled_out: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        flag = argument.replace("_", "-")
        positive = flag.replace("--no-", "--", 1)
        if flags.get(flag) is bool:
            spelled_out += [flag] if following in ("True", "False") else [flag, "True"]
        elif flags.get(positive) is bool:
            spelled_out += [positive, "False"]
        else:
            spelled_out += [argument]

    # The parser also draws a box and a usage line. Only its message is kept, as one line.
    drawn = io.StringIO()
    missing: Any = tyro.MISSING_NONPROP  # unlike MISSING, it keeps the defaults of the fields
    try:
        with contextlib.redirect_stderr(drawn):
            config, unknown = tyro.cli(
                config_type,
                prog=prog,
                args=spelled_out,
                return_unknown_args=True,
                config=(tyro.conf.FlagConversionOff,),
                default=missing if default is None else default,
            )
    except SystemExit as exit_:
        if exit_.code:
            raise ValueError(_first_message(drawn.getvalue())) from None
        raise
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise ValueError(f"{flag!r} belongs to no flag: see {prog} --help")
        refuse_unknown("flag", flag, flags)
    return config


def is_number(argument: str) -> bool:
    return re.fullmatch(r"-\d*\.?\d+(e-?\d+)?", argument) is not None


def flags_of(config_type: Any, prefix: str = "--") -> dict[str, Any]:
    """Return the flags of a config, with their types."""
    flags: dict[str, Any] = {}
    for name, hint in get_type_hints(config_type).items():
        flag = prefix + name.replace("_", "-")
        flags |= flags_of(hint, f"{flag}.") if dataclasses.is_dataclass(hint) else {flag: hint}
    return flags


def one_of(choices: dict[str, Any], name: str, kind: str) -> Any:
    if name not in choices:
        refuse_unknown(kind, name, choices)
    return choices[name]


def refuse_unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    """Raise ValueError that names the nearest known choice. A flag is also found by its name without its group."""
    known = list(known)
    last_parts = {flag.rpartition(".")[2]: flag for flag in known} if kind == "flag" else {}
    bare = name.lstrip("-")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [last_parts[part] for part in difflib.get_close_matches(bare, last_parts, n=1, cutoff=0.6)]
    advice = (
        f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
    )
    raise ValueError(f"unknown {kind} {name}: {advice}")


def _first_message(box: str) -> str:
    """Return the text of the parser's box between its title and the next rule. ASCII terminals get no frame, and a rule
    below the title."""
    parts = re.split(r"^[│╰ ]*[─-]+[│╯ ]*$", box.partition("\n")[2], flags=re.MULTILINE)
    message = next(part for part in parts if part.strip())
    return " ".join(message.replace("│", " ").split())
