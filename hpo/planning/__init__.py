"""What to try next: samplers, pruners, the plan, its decisions and its scheduler; no torch."""
