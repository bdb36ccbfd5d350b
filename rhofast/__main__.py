"""Run the program as `python -m rhofast`, which launchers do: `accelerate launch -m rhofast train ...`."""

from rhofast.cli.app import main

if __name__ == "__main__":
    main()
