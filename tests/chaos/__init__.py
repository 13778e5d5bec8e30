"""Clients at work while nodes are killed and stopped, and a check of all that they saw:
``python -m tests.chaos`` and test_chaos.py.

``clients.py`` is what a client process does and records, ``faults.py`` what befalls the cluster
meanwhile, ``run.py`` starts and ends all of it and has the histories checked.

``world.py`` lists what else they may have to live with: long values (``values.py``), a network that
stalls, cuts and resets (``network.py``), a disk that is full (``small_disk.py``), clocks that step
and disks that are slow (``shim/``), busy loops beside (``busy.py``).
"""
