"""``python -m orchestrator`` is ``dvg``."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
