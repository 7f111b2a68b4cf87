"""Settings of the site: ``sphinx-build -W -c docs . build/site`` from the root of the checkout."""

from importlib import metadata

project = "onecycle"
author = "the onecycle developers"
try:
    release = metadata.version("onecycle")
except metadata.PackageNotFoundError:  # read from the checkout
    release = "development"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
# The root of the checkout is the source, so that the notebooks are pages where they lie.
include_patterns = ["docs/*.md", "nbs/*.ipynb"]

html_theme = "furo"
html_title = "onecycle"
html_show_sphinx = False

nb_execution_mode = "off"  # they are committed with what they gave
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "code"  # `Name` in a docstring is a name
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "none"  # the signature has defaults, the words have meaning and units
autodoc_member_order = "bysource"
