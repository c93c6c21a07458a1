"""``python -m dynabert`` is the command line: what torchrun starts."""

from dynabert.cli import main

if __name__ == "__main__":
    main()
