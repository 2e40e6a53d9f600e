"""The JSON Schemas that ship for other languages: what the forms say now, and true of a bundle's files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

REPOSITORY = Path(__file__).parents[2]
SCHEMAS = REPOSITORY / "va_export" / "schemas"


def test_the_schemas_are_those_of_the_forms() -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "write_schemas.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}: run scripts/write_schemas.py"


@pytest.mark.parametrize("name", ["manifest", "processing"])
def test_a_bundle_keeps_to_them(tiny_bundle: Path, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    document = json.loads((tiny_bundle / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    key = next(iter(document))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, key: []}, schema)
