"""docs/API.md is what the docstrings say, and docs/api.py says it right."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import gtstore
from gtstore import Client, testing
from gtstore.wire.describe.__main__ import DOCS


@pytest.fixture(scope="module")
def api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api", DOCS / "api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(api: ModuleType) -> str:
    text = api.page()
    assert isinstance(text, str)
    return text


def test_the_page_is_up_to_date(api: ModuleType) -> None:
    assert api.main(["--check"]) == 0


def test_check_notices_a_difference(
    api: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that is missing or differs is an error, and is left as it is."""
    path = tmp_path / "API.md"
    assert api.main(["--check"], path) == 1
    assert not path.exists()
    assert api.main([], path) == 0
    assert api.main(["--check"], path) == 0
    path.write_text(path.read_text() + "more\n")
    assert api.main(["--check"], path) == 1
    assert path.read_text().endswith("more\n")
    assert "to write it: python docs/api.py" in capsys.readouterr().err


def test_every_public_name_has_a_heading(page: str) -> None:
    headings = re.findall(r"^#{3,4} `(.*)`$", page, re.MULTILINE)
    assert len(headings) == len(set(headings))
    public = {name for name in gtstore.__all__ if name != "__version__"}
    for cls in (Client, gtstore.AsyncClient, testing.Cluster):
        public |= {f"{cls.__name__}.{name}" for name in vars(cls) if not name.startswith("_")}
    fixtures = {"gtstore_cluster", "gtstore_store", "gtstore_shared_cluster"}
    assert public | fixtures | {"wait_until"} <= set(headings)


def test_every_heading_has_words(page: str) -> None:
    """Nothing that is public lacks a docstring."""
    for part in re.split(r"^#{3,4} ", page, flags=re.MULTILINE)[1:]:
        words = re.sub(r"^```\w+\n.*?^```$", "", part.partition("\n")[2], flags=re.M | re.S)
        assert words.strip(), part


def test_every_link_leads_somewhere(page: str) -> None:
    """GitHub numbers headings that are alike to it."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE):
        plain = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{plain}-1" if plain in anchors else plain)
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert len(links) > 100
    for link in links:
        assert link.removeprefix("#") in anchors if link[0] == "#" else (DOCS / link).exists()
    assert "[`Client.status`](#clientstatus)" in page
    assert "[`status`](#clusterstatus-1)" in page


def test_no_markup_of_docstrings_is_left(page: str) -> None:
    text = re.sub(r"^```\w+\n.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^.*(?:``|::|^ *Args:|^    \S).*$", text, re.MULTILINE)


DOC = """\
A thing::

    with one:

        pass

Text with ``code`` and Client.put.

Args:
    one, two: what
        goes on
    three: other

Raises, now and then:
    ValueError: never

Tree:

::

    A
      B (c)
"""

MARKDOWN = """\
A thing:

```python
with one:

    pass
```

Text with `code` and [`Client.put`](#clientput).

Arguments:

- `one`, `two`: what
  goes on
- `three`: other

Raises, now and then:

- `ValueError`: never

Tree:

```text
A
  B (c)
```"""


def test_a_docstring_as_markdown(api: ModuleType) -> None:
    assert api.markdown(DOC.strip(), {"Client.put": "clientput"}) == MARKDOWN
