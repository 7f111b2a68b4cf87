"""The notebooks with the settings by which tests run them."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "nbs"

#: What the cell of parameters is followed by, and words that must then be among the outputs.
SMALL = {
    "01_quickstart": ("epochs = 1", "images are wrong"),
    "02_finding_a_learning_rate": ("peaks, seeds = [1e-3, 1e-1], [0]", "cycles of 150 updates; "),
    "03_schedules": ("steps = 60", "momentum 0 became 0.95"),
    "04_cifar10": (
        "seeds, updates, sizes, rates = [0], 20, [200, 400], [0.03, 0.1]",
        "400 images: steps ",
    ),
    "05_writing_callbacks": ("epochs = 1", "Forgetful | rule broken"),
    "06_super_convergence_or_not": ("updates, seeds = 60, [0, 1]", "super-convergence: "),
    "07_detect_digits": ("n_train, n_valid, epochs = 200, 50, 1", "digits on 50 images never seen"),
    "08_ensembles_and_averages": ("seeds, epochs, images = [0], 1, 100", "eight shifted views"),
    "09_fine_tuning": ("seeds, epochs, examples = [0], 2, [2, 5]", "fine_tune          5 of each"),
    "10_stop_and_resume": ("epochs = 5", "the records are the same text: True"),
    "11_own_data": ("epochs = 1", "each sample would be compared with every other"),
    "12_several_processes": ("epochs = 1", "of 23 updates in two processes, ended after 23 in one"),
}


def small(name: str) -> NotebookNode:
    """Return a notebook without outputs whose cell of parameters is followed by small settings."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    at = next(
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    )
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(SMALL[name][0]))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook
