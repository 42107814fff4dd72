"""Parameters: from the query, a form or JSON alike; checked before the body is read, as far as they are known then."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from api.problems import InvalidParameters, readable
from api.uploads import MAX_PARTS, Upload, brings_no_fields, read_body
from downloads.media import MAX_REFERENCE_CHARS
from errors import InvalidRequest


class Parameters(BaseModel):
    """The parameters of an endpoint. All are optional here: what must be there, the endpoint's check says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def gathered(cls, pairs: Pairs) -> Pairs:
        """What was sent, by the names of the fields: some interfaces spread a list over several pairs."""
        return pairs


Reference = Annotated[str, StringConstraints(max_length=MAX_REFERENCE_CHARS)]
"""Id or path of a file on the server."""

MAX_LANGUAGE_CHARS = 100
LanguageName = Annotated[str, StringConstraints(max_length=MAX_LANGUAGE_CHARS)]
"""NOTE: bounded because taking accents off costs time that grows with the square of how many stand in a row."""

MOST_SUGGESTIONS = 8
"""Names for which the nearest is looked for, at about a millisecond each."""

P = TypeVar("P", bound=Parameters)
Pairs = Sequence[tuple[str, Any]]


async def read_request(
    request: Request, model: type[P], target: Path, max_bytes: int, check: Callable[[P], object]
) -> tuple[P, Upload | None]:
    """The parameters of *request* and the file in its body, written to *target*.

    What the query says wrong is refused before the body is read. *check* looks at the parameters together; it runs when
    all are known, which is before the body where that cannot bring any. Raises what *check* and `read_body` raise.
    """
    query = request.query_params.multi_items()
    parameters = parse(model, query)
    if brings_no_fields(request.scope["headers"]):
        check(parameters)
    body = await read_body(request, target, max_bytes)
    if body.fields:
        parameters = parse(model, [*query, *body.fields])
    check(parameters)
    return parameters, body.upload


def parse(model: type[P], pairs: Pairs) -> P:
    """*pairs* as *model*, an empty string counting as not given. Raises InvalidRequest, or what validators raise."""
    if len(pairs) > MAX_PARTS:
        raise InvalidRequest(f"More than {MAX_PARTS} parameters were sent.")
    pairs = model.gathered(pairs)
    given = [(name, value) for name, value in pairs if value is not None and value != ""]
    unknown = dict.fromkeys(name for name, _ in pairs if name not in model.model_fields)
    refused = [(name, _unknown(name, model.model_fields, n < MOST_SUGGESTIONS)) for n, name in enumerate(unknown)]
    faults = list(dict.fromkeys([*refused, *_contradictions(given)]))
    if faults:
        raise InvalidParameters(faults)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidParameters(readable(error.errors(include_url=False, include_input=False))) from None


def _unknown(name: str, known: Iterable[str], suggest: bool) -> str:
    if name == "file":
        return "must be sent as a file (curl: -F file=@recording.mp3)"
    if not suggest:
        return "unknown parameter"
    known, name = list(known), name[:40]
    # Who writes "model" means model_size, though mode is nearer.
    nearest = [one for one in known if one.startswith(f"{name}_")] or difflib.get_close_matches(name, known, 1, 0.5)
    return (
        f"unknown parameter; did you mean {nearest[0]}?"
        if nearest
        else f"unknown parameter; there are {', '.join(known)}"
    )


def _contradictions(given: Pairs) -> list[tuple[str, str]]:
    seen: dict[str, str] = {}
    return [
        (name, "given more than once, with different values")
        for name, value in given
        if seen.setdefault(name, str(value)) != str(value)
    ]


def documentation(
    model: type[Parameters], *, example: dict[str, Any], file: str | None = None, required: Sequence[str] = ()
) -> dict[str, Any]:
    """OpenAPI's words for an endpoint that reads its request itself: each parameter in the query or the body.

    *example* is a body in JSON that works; *file* describes the uploaded file where the endpoint takes one.
    """
    described = model.model_json_schema()
    properties = {name: _plain(schema, described.get("$defs", {})) for name, schema in described["properties"].items()}
    # NOTE: the docs page fills a form's fields with their examples, or with "string", and sends what it has filled in.
    fields = {name: schema | {"examples": [""]} for name, schema in properties.items()}
    closed = {"type": "object", "additionalProperties": False}
    content: dict[str, Any] = {}
    if file is not None:
        part = {"type": "string", "format": "binary", "description": file}
        content["multipart/form-data"] = {"schema": closed | {"properties": {"file": part, **fields}}}
    content["application/x-www-form-urlencoded"] = {"schema": closed | {"properties": fields}}
    content["application/json"] = {"schema": closed | {"properties": properties}, "example": example}
    if file is not None:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    note = f" Required, here or in the body: {', '.join(required)}." if required else ""
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": schema.get("description", ""),
                # Filled in with its default, a query would contradict what the body says.
                "schema": {key: value for key, value in schema.items() if key != "default"},
            }
            for name, schema in properties.items()
        ],
        "requestBody": {
            "description": "Every parameter may stand in the query or in the body; empty fields count as not given."
            + note,
            "content": content,
        },
    }


def _plain(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """*schema* in one piece, without the null of an optional parameter: the docs page then offers a plain field."""
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    inner = options[0] if len(options) == 1 else schema
    if "$ref" in inner:
        inner = definitions[inner["$ref"].rpartition("/")[2]]
    own = {key: value for key, value in schema.items() if key not in ("anyOf", "$ref", "title") and value is not None}
    if "default" in own:
        own["description"] = (
            f"{own.get('description', '')} Default: {json.dumps(own['default']).strip(chr(34))}.".strip()
        )
    return {key: value for key, value in inner.items() if key not in ("title", "description")} | own
