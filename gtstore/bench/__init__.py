"""``gtclient bench``: how fast a cluster is, and how evenly keys are spread.

What is asked of a cluster (workloads.py, zipfian.py), where keys go (balance.py) and what is made
of the figures (report.py) knows no sockets, clocks or processes. Around it: worker.py is one client
process, clients.py holds several of them, measuring.py has them measure a cluster, command.py is
the command.
"""
