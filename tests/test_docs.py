"""The pages of the site name what is there, and say of errors what they say."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from page_examples import examples, run_all, words

import onecycle
from onecycle import Learner, accuracy
from onecycle.testing import toy_learner
from onecycle.vision import digits, digits_cnn

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
RUN = [page for page in PAGES if examples(page)]


def test_every_public_name_has_its_place_in_the_reference_once() -> None:
    named = re.findall(
        r"auto(?:class|function):: onecycle\.(\w+)$", (DOCS / "api.md").read_text(), re.M
    )
    assert sorted(named) == sorted(onecycle.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).is_file()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_heading_that_a_file_links_to_is_there(name: str) -> None:
    def anchor(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

    root = DOCS.parent
    links = re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", (root / name).read_text())
    assert [link for link, _ in links if not (root / link).is_file()] == []
    for link, heading in links:
        if heading:
            headings = re.findall(r"^#+ (.+)$", (root / link).read_text(), flags=re.M)
            assert heading in {anchor(each) for each in headings}


def names_of_the_pages() -> dict[str, Any]:
    """Return what the pages say is there: the parts of a learner of the digits."""
    torch.manual_seed(0)
    dls, model, loss_func = digits(), digits_cnn(), torch.nn.functional.cross_entropy
    learn = Learner(dls, model, loss_func, metrics=[accuracy], seed=0)
    return {
        "torch": torch,
        "learn": learn,
        "dls": dls,
        "train": dls.train,
        "valid": dls.valid,
        "model": model,
        "loss_func": loss_func,
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_and_print_what_it_says(page: Path, tmp_path: Path) -> None:
    matplotlib.use("Agg")
    names = names_of_the_pages()
    for expected, printed in run_all(page, tmp_path, names):
        if expected == "accurate enough\n":
            assert printed.endswith(expected)
        elif expected:
            assert words(printed) == words(expected)
    if page.stem == "safety":
        learn = names["learn"]
        assert learn.n_updates == learn.n_updates_planned == 6 * 23
        lrs = learn.recorder.history["lr"].values
        assert lrs[-38] == lrs[-39] > lrs[-37]  # from the checkpoint after 100 updates
        assert lrs[-1] == 1e-3 / 1e5


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
