"""How a command presents itself: its options in groups, and examples at the end of its help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

MANY_OPTIONS = 10
"""More than these are shown in groups."""
OTHERS = "Options"
BY_VARIABLE = "Options also by environment variables, as {} for {}."


class Option(click.Option):
    """An option that knows the group in which the help of a command with many shows it."""

    def __init__(self, *args: Any, group: str = OTHERS, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


class Command(click.Command):
    """A command whose help ends with examples.

    Args:
        examples: commands that can be pasted, each with what it does.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group where there are many."""
        groups: dict[str, list[tuple[str, str]]] = {}
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        for option in options:
            group = option.group if isinstance(option, Option) and len(options) > MANY_OPTIONS else OTHERS
            record = option.get_help_record(ctx)
            if record is not None:
                groups.setdefault(group, []).append(record)
        for title, rows in sorted(groups.items(), key=lambda group: group[0] == OTHERS):
            with formatter.section(title):
                formatter.write_dl(rows)
        variables = [option for option in options if option.envvar]
        if variables:
            longest = max(variables, key=lambda option: option.opts[0].count("-"))
            formatter.write_paragraph()
            formatter.write_text(BY_VARIABLE.format(longest.envvar, longest.opts[0]))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for command, effect in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{command}\n")
                    formatter.indent()
                    formatter.write_text(effect)
                    formatter.dedent()


def with_examples(*examples: tuple[str, str]) -> Callable[[Callable[..., Any]], Command]:
    """Return the decorator of a command, its examples given with what each does."""
    return click.command(cls=Command, examples=examples)
