"""`python -m ccnn.compiler` is the command `ccnn`."""

from ccnn.compiler.cli import main

if __name__ == "__main__":
    main()
