"""
The three ways to write a result: text for people, JSON for programs, SARIF 2.1.0 for code hosts.

Runs in: the checker, any thread. Pure: gives texts, prints nothing.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from typing import TYPE_CHECKING, Any

from safespawn.check.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from safespawn.check.run import Result

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def text(result: Result, *, statistics: bool, version: str) -> str:  # noqa: ARG001 - as the others
    """
    Two lines for each hit; one for each file that could not be checked.
    """
    lines = list(_text_lines(result))
    if statistics:
        lines += [f"{number:>6}  {code}  {RULES[code].title}" for code, number in result.count().items()]
        lines.append(
            f"{result.files} files looked at, {result.parsed} parsed, {result.seconds:.2f} s; "
            f"{len(result.findings)} hits, {len(result.failures)} files not checked"
        )
    return "".join(f"{line}\n" for line in lines)


def _text_lines(result: Result) -> Iterator[str]:
    for found, column in result.findings:
        yield f"{found.path}:{found.line}:{column}: {found.code} {found.severity}: {found.message}"
        yield f"  help: {RULES[found.code].help}"
    for failure in result.failures:
        yield f"{failure.path}:{failure.line}:{failure.column}: unchecked error: {failure.reason}"


def as_json(result: Result, *, statistics: bool, version: str) -> str:
    """
    One object, with `findings` and `failures`.
    """
    content: dict[str, Any] = {
        "version": version,
        "findings": [
            {
                "code": found.code,
                "severity": found.severity,
                "path": found.path,
                "line": found.line,
                "column": column,
                "message": found.message,
                "help": RULES[found.code].help,
                "page": RULES[found.code].page,
            }
            for found, column in result.findings
        ],
        "failures": [
            {"path": each.path, "line": each.line, "column": each.column, "reason": each.reason}
            for each in result.failures
        ],
    }
    if statistics:
        content["statistics"] = {**_figures(result), "by_code": result.count()}
    return json.dumps(content, indent=2) + "\n"


def _figures(result: Result) -> dict[str, Any]:
    return {"files": result.files, "parsed": result.parsed, "seconds": round(result.seconds, 3)}


def sarif(result: Result, *, statistics: bool, version: str) -> str:
    """
    One run in the form that code hosts take.

    Source: SARIF 2.1.0, sections 3.13 (log), 3.14 (run), 3.20 (invocation), 3.27 (result).
    """
    run: dict[str, Any] = {
        "tool": {"driver": {"name": "safespawn check", "version": version, "rules": _sarif_rules()}},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not result.failures,
                "toolExecutionNotifications": [
                    {
                        "level": "error",
                        "message": {"text": failure.reason},
                        "locations": [_location(failure.path, failure.line, failure.column)],
                    }
                    for failure in result.failures
                ],
            }
        ],
        "results": [
            {
                "ruleId": found.code,
                "ruleIndex": list(RULES).index(found.code),
                "level": found.severity,
                "message": {"text": found.message},
                "locations": [_location(found.path, found.line, column)],
            }
            for found, column in result.findings
        ],
    }
    if statistics:
        run["properties"] = {**_figures(result), "byCode": result.count()}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _sarif_rules() -> list[dict[str, Any]]:
    return [
        {
            "id": rule.code,
            "shortDescription": {"text": rule.title},
            "help": {"text": f"{rule.help} ({rule.page})"},
            "defaultConfiguration": {"level": rule.severity},
        }
        for rule in RULES.values()
    ]


def _location(path: str, line: int, column: int) -> dict[str, Any]:
    inside = os.path.relpath(path) if os.path.isabs(path) else os.path.normpath(path)
    shown = os.path.abspath(path) if inside.startswith("..") else inside
    prefix = "file://" if os.path.isabs(shown) else ""
    uri = prefix + urllib.parse.quote(os.fsencode(shown.replace(os.sep, "/")))
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": line, "startColumn": column},
        }
    }


WRITERS: dict[str, Callable[..., str]] = {"text": text, "json": as_json, "sarif": sarif}
