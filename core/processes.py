"""Child processes that import nothing from the working folder: data often lies there, and data may hold files called ``numpy.py``."""

from __future__ import annotations

import site
import sys
from pathlib import Path

# -I: neither the working folder nor PYTHONPATH is searched. What the parent's path has besides comes last and in full: it is
# known to be the user's own. A user's site folder goes through addsitedir, because it may hold editable installs.
_CODE = """\
import sys
{user_site}sys.path.extend(path for path in {paths!r} if path not in sys.path)
from importlib import import_module
getattr(import_module({module!r}), {function!r})()
"""


def python_command(module: str, *arguments: str, function: str = "main") -> list[str]:
    """The command line of a child process that imports ``module`` of this package and calls its ``function()``.

    ``arguments`` are its ``sys.argv[1:]``. The child finds what this process finds, also where the package is installed
    editable, except what lies in the working folder.
    """
    user_site = ""
    if site.ENABLE_USER_SITE and site.getusersitepackages() in sys.path:
        user_site = f"import site; site.addsitedir({site.getusersitepackages()!r})\n"
    code = _CODE.format(user_site=user_site, paths=_search_path(), module=module, function=function)
    return [sys.executable, "-I", "-c", code, *arguments]


def _search_path() -> list[str]:
    """The parent's search path without the working folder, and where this package lies, should it be found by nothing else."""
    here = Path.cwd().resolve()
    paths = [path for path in sys.path if Path(path).is_absolute() and Path(path).resolve() != here]
    package = Path(__file__).resolve().parents[1]
    if package.name == "mgvq_export":
        paths.append(str(package.parent))
    return paths
