"""`python -m rhofast`, and so `accelerate launch -m rhofast train ...`."""

from rhofast.cli.app import main

if __name__ == "__main__":
    main()
