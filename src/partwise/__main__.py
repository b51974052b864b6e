"""`python -m partwise` is `partwise`."""

from partwise.cli import main

if __name__ == "__main__":
    main()
