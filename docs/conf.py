"""Sphinx: sphinx-build -W docs build/docs"""

import decoct

project = "decoct"
version = release = decoct.__version__
copyright = "the decoct developers"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "sphinx_gallery.gen_gallery"]
html_theme = "furo"
exclude_patterns = ["gallery"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Gradients"]
# The README links to files beside it, which are no pages here.
suppress_warnings = ["myst.xref_missing"]

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "show_memory": False,
}
