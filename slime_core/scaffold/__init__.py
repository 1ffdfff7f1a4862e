"""New plugin packages: behind `slime plugins new`.

package.py    writes a package from the templates
names.py      which names a package may have
elsewhere.py  where to begin with a component of a kind that has no template
templates/    `kinds/KIND.py.template` is a small component of that kind that works, `kinds/test_KIND.py.template` its
              test; the others are the same for all kinds
"""

from slime_core.scaffold.package import EXAMPLES, Example, NewPackage, new_package

__all__ = ["EXAMPLES", "Example", "NewPackage", "new_package"]
