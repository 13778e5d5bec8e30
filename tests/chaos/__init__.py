"""Clients at work while nodes are killed and stopped, and a check of all that they saw:
``python -m tests.chaos`` and test_chaos.py.

``clients.py`` is what a client process does and records, ``faults.py`` what befalls the cluster
meanwhile, ``run.py`` starts and ends all of it and has the histories checked.
"""
