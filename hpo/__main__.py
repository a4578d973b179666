"""`python -m hpo` and the command `hpo`."""

import os
import sys

STOPPED = (130, 143)


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being loaded is exit 130 too."""
    try:
        from hpo.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        run()
    except SystemExit as end:
        if end.code in STOPPED:
            _leave_at_once(end.code)
        raise


def _leave_at_once(code: int) -> None:
    # Python would take a second of CPU time to put torch away, and wait for what hangs in a database that is
    # away; schedulers give ten seconds, on a busy machine too
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
