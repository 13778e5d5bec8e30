"""Damaged frames against a running node and manager; ``python -m tests.fuzz`` and test_fuzz.py."""
