"""`python -m compressm`: the command line."""

from compressm.cli.app import main

if __name__ == "__main__":
    main()
