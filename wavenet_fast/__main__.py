"""`python -m wavenet_fast` is `wavenet-fast`."""

from .cli import main

main()
