"""`python -m hpo` and the command `hpo`."""

from hpo.cli import main

if __name__ == "__main__":
    main()
