"""The pages of the site name what is there, and say of errors what they say."""

import re
from pathlib import Path

import pytest

import onecycle
from onecycle.testing import toy_learner

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_every_public_name_has_its_place_in_the_reference_once() -> None:
    named = re.findall(
        r"auto(?:class|function):: onecycle\.(\w+)$", (DOCS / "api.md").read_text(), re.M
    )
    assert sorted(named) == sorted(onecycle.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_every_page_and_notebook_is_in_the_list_of_the_first_page() -> None:
    text = (DOCS / "index.md").read_text()
    notebooks = {f"../nbs/{path.stem}" for path in (DOCS.parent / "nbs").glob("*.ipynb")}
    names = notebooks | {page.stem for page in PAGES} - {"index"}
    assert [name for name in sorted(names) if f"\n{name}\n" not in text] == []


def test_the_errors_that_a_page_shows_are_those_that_come() -> None:
    text = (DOCS / "coming_from.md").read_text()
    with pytest.raises(TypeError) as wrong_keyword:
        toy_learner().fit_one_cycle(1, max_lr=1e-3)  # type: ignore[call-arg]
    with pytest.raises(ImportError) as wrong_name:
        exec("from onecycle import EarlyStoppingCallback")
    for caught in (wrong_keyword, wrong_name):
        assert f"{caught.type.__name__}: {caught.value}\n" in text


def test_what_the_page_for_other_libraries_calls_ours_is_ours() -> None:
    text = (DOCS / "coming_from.md").read_text()
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| `")]
    classes = {name for row in rows for name in re.findall(r"\b([A-Z]\w+)\(", row)}
    verbs = {name for row in rows for name in re.findall(r"learn\.(\w+)\(", row)}
    assert len(classes) > 8
    assert [name for name in sorted(classes) if name not in onecycle.__all__] == []
    assert [name for name in sorted(verbs) if not hasattr(onecycle.Learner, name)] == []
