"""``python -m harness``, as launchers want it: ``torchrun --nproc-per-node 2 -m harness run recipe=quickstart``."""

from harness.cli import main

if __name__ == "__main__":
    main()
