"""These tests need Triton's interpreter, which is chosen when triton is imported: test_triton_interpreted.py, one
folder up, runs them in a process of their own."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
