"""README, CONTRIBUTING and CHANGELOG against the code: paths, options, commands, snippets and names."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from va_export import Bundle, Generation
from va_export._version import __version__
from va_export.cli.check import check_command
from va_export.cli.console import Result
from va_export.cli.export import export_command
from va_export.cli.failures import EXIT_CRASH, EXIT_ERROR, EXIT_FAILED_PARITY
from va_export.cli.run import run_command
from va_export.export.recipe import recipe_names
from va_export.tensorrt.targets import DEFAULT_TARGETS

REPOSITORY = Path(__file__).parents[1]
README, CONTRIBUTING, CHANGELOG, SECURITY = "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"
DOCUMENTS = (README, CONTRIBUTING, CHANGELOG, SECURITY)
COMMANDS: dict[str, Callable[..., Result]] = {
    "va-export": export_command,
    "va-run": run_command,
    "va-check": check_command,
}

# Every option of every command. A change here is a change of the interface, and belongs into the changelog.
OPTIONS = {
    "va-export": """--allow-truncated --alpha-k --alpha-v --atol --attention --clip-overflow --components
        --decoder-shards --dry-run --engine-cache --fp16 --fp32 --frames --image-token-id --json --latency-iterations
        --log-level --max-batch-size
        --max-frames --max-input-len --max-kv-cache-capacity --max-pixels --model --new-tokens --no-parity --no-resume
        --num-decoder-layers --onnx-only --output --overwrite
        --pca-rank --precision --question --revision --rtol --sampling --seed --subspaces --target --tensorrt --version
        --video --weights -o""",
    "va-run": """--allow-truncated --alpha-k --alpha-v --backend --devices --frames --json --log-level --max-new-tokens
        --no-anchors --prompt --sampling --score --score-cache --seed --temperature --timings --top-k --top-p
        --trust-plugins --version --video""",
    "va-check": """--atol --backend --devices --json --latency-iterations --log-level --output --rtol --trust-plugins
        --version -o""",
}

# What the walk-throughs of CONTRIBUTING leave open, and the example that stands for it.
PLACEHOLDERS = {"NAME": "internvl2", "OP": "anchored_attention", "VERB_NOUN": "fold_constants"}
FOREIGN_OPTIONS = {"--strict", "--device"}  # mypy's; the GPU scripts'
FOREIGN_NAMES = {"utils.py", "config.json", "tokenizer.json"}


def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def filled_in(text: str) -> str:
    for placeholder, example in PLACEHOLDERS.items():
        text = re.sub(rf"(?<![A-Z]){placeholder}(?!_?[A-Z])", example, text)
    return text


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(document), re.MULTILINE | re.DOTALL)


def parser(command: str) -> Any:
    app = typer.Typer(add_completion=False)
    app.command()(COMMANDS[command])
    return typer.main.get_command(app)


def options(command: str) -> dict[str, Any]:
    """Every spelling of every option, `--help` aside."""
    parameters = [parameter for parameter in parser(command).params if parameter.param_type_name == "option"]
    return {
        spelling: parameter
        for parameter in parameters
        for spelling in (*parameter.opts, *parameter.secondary_opts)
        if spelling != "--help"
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(document))
    for link in links:
        assert link.startswith("https://") or (REPOSITORY / link.split("#")[0]).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    # README's section on the bundle names what lies in a bundle.
    text = re.sub(r"^## The bundle\n.*?^(?=## )", "", filled_in(text_of(document)), flags=re.MULTILINE | re.DOTALL)
    paths = set(re.findall(r"(?<![\w/.-])(?:va_export|plugins|engines|scripts|tests)/[\w./*-]*[\w/*]", text))
    assert paths or document == CHANGELOG
    for path in paths:
        assert list(REPOSITORY.glob(path.rstrip("/"))), path
        assert not path.endswith("/") or (REPOSITORY / path).is_dir(), path


def sources() -> dict[Path, str]:
    suffixes = {".py", ".toml", ".sh", ".txt", ".cmake", ".h", ".cuh", ".cu", ".cpp", ".map"}
    folders = ("va_export", "plugins", "engines", "scripts", "tests")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.suffix in suffixes]
    return {path: path.read_text(encoding="utf-8") for path in [*files, REPOSITORY / "pyproject.toml"]}


def test_contributing_names_what_is_in_the_code() -> None:
    """Every file name and every identifier that stands in backquotes."""
    code = {path: text for path, text in sources().items() if path != Path(__file__)}
    words = set(re.findall(r"\w+", "\n".join(code.values())))
    files = {path.name for path in code}
    spans = set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", filled_in(text_of(CONTRIBUTING)))) - FOREIGN_NAMES
    assert len(spans) > 60
    for span in spans:
        if re.fullmatch(r"[\w-]+\.(py|sh|toml|h|cuh?|cpp)", span):
            assert span in files, span
        elif "/" not in span and not span.startswith("-"):
            assert set(re.findall(r"[A-Za-z_]\w{2,}", span)) <= words, span


def test_sources_name_files_and_modules_that_exist() -> None:
    """In comments and docstrings too: a source's path from the root, and `room.module` in backquotes."""
    made_up = re.compile(r"/x\.|[A-Z]{2}")  # placeholders
    named, missing = 0, list[str]()
    for text in sources().values():
        paths = re.findall(
            r"(?<![\w/.-])(?:va_export|plugins|engines|scripts|tests)/[\w./-]+\.(?:py|sh|cuh?|h|cpp|md)\b", text
        )
        names = re.findall(r"`(?:va_export\.)?([a-z_]\w*)\.([a-z_]\w*)[\w.]*`", text)
        members = [(room, name) for room, name in names if (REPOSITORY / "va_export" / room).is_dir()]
        named += len(paths) + len(members)
        missing += [path for path in paths if not made_up.search(path) and not (REPOSITORY / path).exists()]
        for room, name in members:
            inside = REPOSITORY / "va_export" / room / name
            if not inside.is_dir() and not inside.with_suffix(".py").exists():
                missing += [] if hasattr(importlib.import_module(f"va_export.{room}"), name) else [f"{room}.{name}"]
    assert named > 100
    assert missing == []


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_frozen_and_explained(command: str) -> None:
    found = options(command)
    assert sorted(found) == sorted(OPTIONS[command].split())
    for spelling, parameter in found.items():
        assert parameter.help and parameter.help.endswith((".", "]")), f"{spelling} has no help text, or no whole one"
    assert inspect.getdoc(COMMANDS[command])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_in_documents_exist(document: str) -> None:
    known = {spelling for command in COMMANDS for spelling in options(command)}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text_of(document)))
    assert mentioned <= known | {"--help"} | FOREIGN_OPTIONS


def command_lines() -> Iterator[tuple[str, list[str]]]:
    for document in (README, CONTRIBUTING):
        for block in blocks(document, "sh"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in COMMANDS:
                    yield words[0], words[1:]
        for line in re.findall(r"`(va-\w+ [^`]+)`", filled_in(text_of(document))):
            command, *words = shlex.split(line)
            yield command, words


def test_commands_in_documents_parse() -> None:
    lines = list(command_lines())
    assert {command for command, _ in lines} == set(COMMANDS)
    for command, words in lines:
        if "--help" in words:
            continue
        values = parser(command).make_context(command, words).params
        model = values.get("model")
        assert model is None or "/" in model or model in recipe_names(), model


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises(Exception, match="No such option"):
        parser("va-run").make_context("va-run", ["bundle", "--video", "a.mp4", "--prompt", "?", "--fp16"])


def test_shell_scripts_in_documents_exist() -> None:
    for document in (README, CONTRIBUTING):
        for line in (line for block in blocks(document, "sh") for line in block.splitlines()):
            words = shlex.split(line, comments=True)
            if words and words[0] not in COMMANDS:
                assert words[0] == "bash", line
                assert (REPOSITORY / words[1]).is_file(), line


def imported(tree: ast.Module) -> dict[str, Any]:
    """The objects that a snippet imports."""
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
    return names


def bind(function: Callable[..., Any], call: ast.Call, *first: object) -> None:
    """Whether the call's arguments fit the function's signature; TypeError where they do not."""
    keywords = {str(keyword.arg): None for keyword in call.keywords}
    inspect.signature(function).bind(*first, *(None for _ in call.args), **keywords)


def test_python_in_readme_names_and_calls_what_there_is() -> None:
    snippets = [ast.parse(block) for block in blocks(README, "python")]
    assert len(snippets) >= 2
    calls = 0
    for tree in snippets:
        names = imported(tree)
        assert names
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in names:
                    bind(names[name], node)
                    calls += 1
                case ast.Call(func=ast.Attribute(value=ast.Name(id="Bundle"), attr=method)):
                    bind(getattr(Bundle, method), node)
                    calls += 1
                case ast.Call(func=ast.Attribute(value=ast.Name(id="bundle"), attr=method)):
                    bind(getattr(Bundle, method), node, None)
                    calls += 1
                case ast.Attribute(value=ast.Name(id="answer"), attr=attribute):
                    assert attribute in Generation.__dataclass_fields__
    assert calls >= 6


def test_readme_states_the_numbers_of_the_code() -> None:
    text = text_of(README)
    for code in (0, EXIT_FAILED_PARITY, EXIT_ERROR, EXIT_CRASH, 129, 130, 141, 143):
        assert re.search(rf"(Exit codes: |; ){code} ", text), code
    assert ", ".join(DEFAULT_TARGETS["tensorrt-rtx"]) in text
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    (rtx,) = (entry for entry in project["optional-dependencies"]["rtx"] if entry.startswith("tensorrt-rtx"))
    assert f"TensorRT-RTX {'.'.join(rtx.split('==')[1].split('.')[:2])} " in text
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in text


def test_changelog_has_this_version_and_a_place_for_the_next() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", text_of(CHANGELOG), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]
