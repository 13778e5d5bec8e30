"""``python docs/api.py``: write docs/API.md from the docstrings and signatures of the public names.

With ``--check`` it changes nothing, and fails if the file differs. It reads the source text, so
annotations and defaults stand there as they are written.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

import gtstore

PATH: Final = Path(__file__).parent / "API.md"
LINE_MAX: Final = 100

INTRODUCTION: Final = """\
# API reference

Everything that a program may use. All names but those of the last two chapters are in the package
itself: `gtstore.connect`, `gtstore.OutcomeUnknown`. [TUTORIAL.md](TUTORIAL.md) shows them at work.
(This page is written by `python docs/api.py` from the docstrings.)
"""


class Section(NamedTuple):
    """A chapter of the page: what it shows of a module, in this order."""

    title: str
    module: str
    names: tuple[str, ...]
    paragraphs: slice = slice(0)
    """Which paragraphs of the module's docstring introduce it."""


def public_errors() -> tuple[str, ...]:
    """In the order of the module, which is that of the tree."""
    return tuple(
        name
        for name, value in vars(import_module("gtstore.errors")).items()
        if name in gtstore.__all__ and issubclass(value, Exception)
    )


SECTIONS: Final = (
    Section("The client", "gtstore.client", ("connect", "Client")),
    Section("The client for asyncio", "gtstore.async_client", ("connect_async", "AsyncClient")),
    Section("The store as a dict", "gtstore.mapping", ("StoreMapping",)),
    Section(
        "Results",
        "gtstore.results",
        (
            "PutResult",
            "StoredEntry",
            "ScannedEntry",
            "Version",
            "Location",
            "ClusterStatus",
            "NodeStatus",
            "Trouble",
        ),
    ),
    Section("Errors", "gtstore.errors", public_errors(), slice(None)),
    Section("gtstore.testing", "gtstore.testing", ("Cluster", "wait_until"), slice(None)),
    Section(
        "Fixtures for pytest",
        "gtstore.pytest_plugin",
        ("gtstore_cluster", "gtstore_store", "gtstore_shared_cluster"),
        slice(-1),
    ),
)


class Entry(NamedTuple):
    """What has a heading of its own."""

    name: str
    """With its class: ``Client.put``."""
    code: str
    doc: str


Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """A module's source, and what it says of its names."""

    def __init__(self, name: str) -> None:
        self._module = import_module(name)
        self._source = inspect.getsource(self._module)
        self._body = ast.parse(self._source).body
        self.paragraphs = inspect.cleandoc(self._module.__doc__ or "").split("\n\n")

    def entries(self, name: str) -> Iterator[Entry]:
        """A function's entry, or a class's and those of its public methods."""
        nodes = [node for node in self._body if getattr(node, "name", "") == name]
        if isinstance(nodes[-1], ast.ClassDef):
            yield from self._class_entries(nodes[-1])
        else:
            yield self._function_entry(name, nodes)

    def _class_entries(self, node: ast.ClassDef) -> Iterator[Entry]:
        bases = ", ".join(map(self._text, node.bases))
        fields = [self._text(part) for part in node.body if isinstance(part, ast.AnnAssign)]
        methods: dict[str, list[ast.stmt]] = {}
        for part in node.body:
            if isinstance(part, Function):
                methods.setdefault(part.name, []).append(part)
        code = f"class {node.name}({bases})" if bases else f"class {node.name}"
        init = methods.pop("__init__", None)
        if fields:
            code = "\n    ".join([f"{code}:", *fields])
        elif init and not bases:
            code = self._signature(init[-1], f"class {node.name}").removesuffix(" -> None")
        yield Entry(node.name, code, ast.get_docstring(node) or "")
        for name, nodes in methods.items():
            entry = self._function_entry(f"{node.name}.{name}", nodes)
            is_special = name.startswith("__")
            # Of the special methods, those that have something to say.
            if entry.doc if is_special else not name.startswith("_"):
                yield entry

    def _function_entry(self, name: str, nodes: list[ast.stmt]) -> Entry:
        """Of an overloaded function, the overloads are shown, and the last one's docstring."""
        *overloads, last = nodes
        assert isinstance(last, Function)
        shown = overloads or [last]
        return Entry(name, "\n".join(map(self._signature, shown)), ast.get_docstring(last) or "")

    def _signature(self, node: ast.stmt, start: str = "") -> str:
        assert isinstance(node, Function)
        decorators = {self._text(decorator).partition("(")[0] for decorator in node.decorator_list}
        returns = self._text(node.returns)
        if "property" in decorators:
            return f"{node.name}: {returns}"
        if "pytest.fixture" in decorators:
            return f"{node.name}: {returns.removeprefix('Iterator[').removesuffix(']')}"
        if not start:
            word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            start = f"{word} {node.name}"
        parts = list(self._parameters(node.args))
        line = f"{start}({', '.join(parts)}) -> {returns}"
        if len(line) <= LINE_MAX:
            return line
        return "\n".join([f"{start}(", *(f"    {part}," for part in parts), f") -> {returns}"])

    def _parameters(self, arguments: ast.arguments) -> Iterator[str]:
        """Each as it is written, without self."""
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
        for argument, default in zip(positional, defaults, strict=True):
            if argument.arg != "self":
                yield self._parameter(argument, default)
            if arguments.posonlyargs and argument is arguments.posonlyargs[-1]:
                yield "/"
        if arguments.vararg:
            yield f"*{self._text(arguments.vararg)}"
        elif arguments.kwonlyargs:
            yield "*"
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            yield self._parameter(argument, default)
        if arguments.kwarg:
            yield f"**{self._text(arguments.kwarg)}"

    def _parameter(self, argument: ast.arg, default: ast.expr | None) -> str:
        if default is None:
            return self._text(argument)
        text = self._text(default)
        value = getattr(self._module, text, None)
        # Named numbers are of use to the module; the reader wants the number.
        return f"{self._text(argument)} = {value if isinstance(value, int | float) else text}"

    def _text(self, node: ast.AST | None) -> str:
        """As it is written, in one line."""
        assert node is not None
        return " ".join((ast.get_source_segment(self._source, node) or "").split())


# --- Markdown ------------------------------------------------------------------------------------


def markdown(doc: str, anchors: dict[str, str]) -> str:
    """A docstring as Markdown: its lists of arguments and errors, its code, and its links."""
    blocks: list[str] = []
    for part in re.split(r"\n\n(?=\S)", doc):
        text, _, code = part.partition("::\n\n    ")
        title, _, lines = text.partition("\n    ")
        if lines and re.fullmatch(r"(Args|Raises)\b.*:", title):
            blocks.append(title.replace("Args", "Arguments"))
            text = _list(_dedented(lines))
        elif code and text:
            text += ":"
        if text:
            blocks.append(_linked(text, anchors))
        if code:
            code = _dedented(code)
            blocks.append(f"```{'python' if _is_python(code) else 'text'}\n{code}\n```")
    return "\n\n".join(blocks)


def _dedented(text: str) -> str:
    """Without the four spaces of each line; the first one has lost them already."""
    return inspect.cleandoc(f"\n    {text}")


def _is_python(code: str) -> bool:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        compile(code, "docstring", "exec", flags)
    except SyntaxError:
        return False
    return True


def _list(lines: str) -> str:
    """``name: text`` and its further lines, which are indented."""
    result = []
    for line in lines.splitlines():
        if line.startswith(" "):
            result.append(f"  {line.strip()}")
        else:
            names, _, text = line.partition(": ")
            result.append(f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {text}")
    return "\n".join(result)


def _linked(text: str, anchors: dict[str, str]) -> str:
    """With links from the names that have headings."""
    text = text.replace("``", "`")

    def link(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return f"[`{name}`](#{anchors[name]})" if name in anchors else match[0]

    return re.sub(r"`([\w.]+)`|(?<![`\w.])(\w+\.\w+|[A-Z]\w*[a-z][A-Z]\w+)(?![`\w])", link, text)


def anchors_of(headings: list[str]) -> dict[str, str]:
    """Where GitHub puts headings. Two may differ only in what it leaves out: Cluster.status and
    ClusterStatus."""
    anchors: dict[str, str] = {}
    count: Counter[str] = Counter()
    for heading in headings:
        plain = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        anchors[heading] = f"{plain}-{count[plain]}" if count[plain] else plain
        count[plain] += 1
    return anchors


def page() -> str:
    """The whole of API.md."""
    modules = {section.module: Module(section.module) for section in SECTIONS}
    chapters = [
        (section, [list(modules[section.module].entries(name)) for name in section.names])
        for section in SECTIONS
    ]
    headings: list[str] = []
    for section, groups in chapters:
        headings += [section.title, *(entry.name for group in groups for entry in group)]
    anchors = anchors_of(headings)
    contents: list[str] = []
    body: list[str] = []
    for section, groups in chapters:
        contents.append(f"- [{section.title}](#{anchors[section.title]})")
        body.append(f"## {section.title}")
        introduction = "\n\n".join(modules[section.module].paragraphs[section.paragraphs])
        if introduction:
            body.append(markdown(introduction, anchors))
        for first, *rest in groups:
            line = f"  - [`{first.name}`](#{anchors[first.name]})"
            links = (f"[`{e.name.partition('.')[2]}`](#{anchors[e.name]})" for e in rest)
            contents.append(f"{line}: {', '.join(links)}" if rest else line)
            for entry in (first, *rest):
                level = "####" if "." in entry.name else "###"
                body.append(f"{level} `{entry.name}`\n\n```python\n{entry.code}\n```")
                if entry.doc:
                    body.append(markdown(entry.doc, anchors))
    return "\n\n".join([INTRODUCTION.rstrip(), "\n".join(contents), *body]) + "\n"


def main(arguments: list[str] | None = None, path: Path = PATH) -> int:
    """Run the program; return its exit code: 1 if the page differs."""
    parser = argparse.ArgumentParser(description="Write docs/API.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it differs")
    options = parser.parse_args(arguments)
    text = page()
    if not options.check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        print(f"{path.name} differs from the docstrings", file=sys.stderr)
        print("to write it: python docs/api.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
