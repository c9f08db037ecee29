"""`python -m davae`, `accelerate launch -m davae` and the `davae` command."""

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from davae.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
