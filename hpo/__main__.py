"""`python -m hpo` and the command `hpo`."""


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being loaded is exit 130 too."""
    try:
        from hpo.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
