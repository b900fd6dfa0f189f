"""``python -m ppl_em`` is the command ``ppl-em``."""

from ppl_em.cli import main

if __name__ == "__main__":
    main()
