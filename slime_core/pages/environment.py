"""`page_environment`: where the templates of a package find the shared ones."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

SHARED = "slime_core.pages"


def page_environment(package: str) -> Environment:
    """Return a jinja2 environment with the templates of a package, from its folder `templates`, and the shared ones.

    A template begins with `{% extends "page.html.jinja" %}` and fills the blocks `title` and `body`. Everything is
    escaped; a name that the template is not given is an error.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(SHARED)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
