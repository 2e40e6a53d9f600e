"""Write the JSON Schemas of the documents that runtimes in other languages read.

.venv/bin/python scripts/write_schemas.py [--check]      --check: exit with 1 where one is stale
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from va_export.bundle.document import ManifestDocument
from va_export.documents import json_schema
from va_export.runtime.processing import Processing

FOLDER = Path(__file__).parents[1] / "va_export" / "schemas"
FORMS = {"manifest": ManifestDocument, "processing": Processing}


def main() -> int:
    """0; 1 where `--check` found another file."""
    stale = []
    for name, form in FORMS.items():
        path, text = FOLDER / f"{name}.schema.json", json.dumps(json_schema(form), indent=1) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    print("\n".join(stale) if stale else "all as it should be")
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
