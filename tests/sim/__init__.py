"""The simulated cluster: the real core on a network without sockets, clocks or threads."""
