"""HTML pages that a person opens in a browser: each is one file that loads nothing from anywhere.

    environment.py  `page_environment`: the jinja2 environment in which a package's templates extend the shared ones
    tokens.py       `PageToken`: one token of a token strip, with what is invisible made visible

The shared templates are in the folder `templates`: `page.html.jinja` is the frame with the stylesheet `page.css`, and
`tokens.html.jinja` has the macro `token_strip`. Everything that is put into a template is escaped.
"""

from slime_core.pages.environment import page_environment
from slime_core.pages.tokens import PageToken, visible

__all__ = ["PageToken", "page_environment", "visible"]
