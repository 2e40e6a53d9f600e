#!/usr/bin/env python
"""Writes README's section on performance from the evidence files; with --check it only says whether they agree.

.venv/bin/python scripts/readme_tables.py [--check]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from va_export.errors import VaExportError
from va_export.evidence.tables import performance_section, read_folder, replace_section

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Rewrite or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where README and evidence disagree; write nothing")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--evidence", type=Path, default=ROOT / "engines" / "evidence")
    arguments = parser.parse_args()
    try:
        before = arguments.readme.read_text(encoding="utf-8")
        after = replace_section(before, performance_section(read_folder(arguments.evidence)))
    except (OSError, ValueError, VaExportError) as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.check and before != after:
        raise SystemExit(f"{arguments.readme} disagrees with {arguments.evidence}: run scripts/readme_tables.py")
    if before != after:
        arguments.readme.write_text(after, encoding="utf-8")
    print(f"{arguments.readme} agrees with {arguments.evidence}")


if __name__ == "__main__":
    main()
