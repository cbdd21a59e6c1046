"""`python -m retailtag`."""

from retailtag.cli.main import main

if __name__ == "__main__":
    main()
