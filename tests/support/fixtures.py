"""The types of fixtures that are functions."""

from __future__ import annotations

from collections.abc import Callable

import servers

from tests.support.command import Result

Cli = Callable[..., Result]
StartedServers = Callable[[str], servers.Server]
