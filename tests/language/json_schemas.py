"""Fifty JSON schemas of the kinds that people ask answers in: records, lists, choices, nesting, references, bounds."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def record(**fields: Schema) -> Schema:
    """An object with exactly these fields."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def words(most: int = 40) -> Schema:
    return {"type": "string", "maxLength": most}


def listed(items: Schema, least: int = 1, most: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


YES: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
DATE: Schema = {"type": "string", "pattern": "^(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])$"}
CODE: Schema = {"type": "string", "pattern": "^[A-Z]{2,3}-[0-9]{1,4}$"}
PERSON = record(name=words(20), age=whole(0, 120))
PLACE = record(latitude=whole(-90, 90), longitude=whole(-180, 180))
COLOUR: Schema = {"enum": ["red", "green", "blue", "yellow", "black", "white"]}

SCHEMAS: list[Schema] = [
    PERSON,
    PLACE,
    COLOUR,
    YES,
    DATE,
    CODE,
    whole(1, 10),
    {"const": "done"},
    {"enum": [1, 2, 3, "many"]},
    {"enum": [None, True, "ab"]},
    {"anyOf": [NULL, whole(0, 9)]},
    {"anyOf": [PERSON, {"enum": ["nobody"]}]},
    {"oneOf": [record(yes=words(12)), record(no=whole(0, 5))]},
    listed(COLOUR),
    listed(YES, 2, 2),
    listed(whole(0, 99), 3, 5),
    listed(words(12), 1, 4),
    listed(PERSON, 1, 2),
    listed(listed(whole(0, 9), 2, 2), 1, 2),
    {"type": "array", "prefixItems": [words(10), whole(0, 9), YES], "items": False, "minItems": 3},
    record(title=words(30), year=whole(1900, 2030)),
    record(question=words(40), answer=words(40)),
    record(city=words(20), country=words(20), capital=YES),
    record(sentiment={"enum": ["positive", "negative", "neutral"]}, confidence=whole(0, 100)),
    record(language={"enum": ["en", "de", "fr", "es"]}, text=words(40)),
    record(product=words(20), price={"type": "number"}, stock=YES),
    record(author=words(20), born=DATE),
    record(code=CODE, note=words(20)),
    record(tags=listed(words(10), 1, 3), rating=whole(1, 5)),
    record(steps=listed(record(step=whole(1, 9), text=words(24)), 1, 2)),
    record(person=PERSON, place=PLACE),
    record(a=record(b=record(c=record(d=whole(0, 1))))),
    record(items=listed(record(name=words(10), count=whole(1, 9)), 1, 3), total=whole(1, 99)),
    record(choice={"enum": ["A", "B", "C", "D"]}, why=words(40)),
    record(found=YES, place={"anyOf": [NULL, PLACE]}),
    record(email={"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{2,8}\\.(com|org)$"}),
    record(phone={"type": "string", "pattern": "^\\+[0-9]{6,9}$"}),
    record(time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}, event=words(20)),
    record(temperature={"type": "integer", "minimum": -40, "maximum": 50}, unit={"const": "C"}),
    record(**{"two words": words(10), "ünïcode": whole(0, 9)}),
    record(kind={"const": "circle"}, radius=whole(1, 50)),
    {"type": "object", "properties": {"x": whole(0, 9), "y": YES}, "required": ["x"], "additionalProperties": False},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {
        "$defs": {"point": record(x=whole(0, 99), y=whole(0, 99))},
        **record(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}),
    },
    {
        "$defs": {"tree": record(name=words(6), children=listed({"enum": ["leaf", "bud"]}, 0, 2))},
        **record(root={"$ref": "#/$defs/tree"}),
    },
    record(function={"enum": ["search", "weather"]}, arguments=record(query=words(24))),
    record(name=words(16), nickname={"anyOf": [words(10), NULL]}, pets=whole(0, 4)),
    record(matrix=listed(listed(whole(0, 9), 2, 2), 2, 2)),
    record(summary=words(60), keywords=listed(words(10), 2, 3), safe=YES),
    {"type": "string", "minLength": 3, "maxLength": 12},
]
