"""The documentation site. From the root of the repository: `sphinx-build -W --keep-going docs docs/_build`.

The build reads this folder, README.md, CHANGELOG.md, CONTRIBUTING.md and hpo's docstrings. Neither the build
nor the pages need a network: no fonts, scripts or counters from elsewhere. `-W` makes every warning an error,
dead links among pages included.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import Any

import click
from sphinx.application import Sphinx

from hpo.cli.main import hpo

project = "hpo"
author = "The hpo authors"
project_copyright = f"2026, {author}"
release = version = version_of("hpo-studies")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # links to `page.md#section` are checked, too
default_role = "code"  # docstrings write `code` as Markdown does

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"hpo {release}"
html_static_path = ["_static"]
html_css_files = ["hpo.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def setup(app: Sphinx) -> None:
    """Have the command reference written while `commands.md` is read."""
    app.connect("source-read", _add_commands)


def _add_commands(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "commands":
        context = click.Context(hpo)
        commands = [hpo.resolve_command(context, [name])[1] for name in sorted(hpo.commands)]
        source[0] += "\n".join(_section(command) for command in commands if command is not None)


def _section(command: click.Command) -> str:
    """Return a command's usage, help and options as Markdown."""
    name = command.name
    context = click.Context(command, info_name=f"hpo {name}", terminal_width=10_000)
    usage = command.get_usage(context).removeprefix("Usage: ")
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    rows = [_row(option, context) for option in options if "--help" not in option.opts]
    intro = [f"\n## hpo {name}\n", f"```text\n{usage}\n```\n", command.help or "", ""]
    table = ["| option | what it does | variable |", "|---|---|---|", *rows]
    examples = [f"# {effect}\n{line}" for line, effect in getattr(command, "examples", ())]
    return "\n".join([*intro, *table, "", "```sh", *examples, "```"])


def _row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(option.opts)
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    text, default = option.help or "", option.default if option.show_default else None
    written = re.search(r" *\[default: (.*)\]$", text)
    if written:
        text, default = text[: written.start()], written[1]
    if default not in (None, False):
        text += f" Default: {_code(default)}." if " " not in str(default) else f" Default: {default}."
    variable = _code(option.envvar) if option.envvar else ""
    return f"| {_code(names + value)} | {text.replace('|', chr(92) + '|')} | {variable} |"


def _code(text: Any) -> str:
    return "`" + str(text).replace("|", "\\|") + "`"
