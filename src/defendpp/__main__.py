"""`python -m defendpp`, the same as `defendpp`."""

from defendpp.cli import main

if __name__ == "__main__":
    main()
