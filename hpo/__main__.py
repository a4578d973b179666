"""`python -m hpo` and the command `hpo`."""

import atexit
import os
import sys

STOPPED = (130, 143)


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded is exit 130 too."""
    try:
        from hpo.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> None:
    try:
        # these wait for what hangs in a database that is away; schedulers give ten seconds after a signal
        if code not in STOPPED:
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # what was printed has not arrived
        code = code or 1
    # Python's own end looks for garbage in all of torch first, for 0.9 CPU seconds, 1.4 in a worker
    os._exit(code)


if __name__ == "__main__":
    main()
