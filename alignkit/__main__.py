"""`python -m alignkit`: the command line, for `torchrun -m alignkit train …` and `accelerate launch -m …`."""

from alignkit.cli import main

main()
