"""The message table for people and tools: what is generated from it in docs/.

``document`` writes the blocks of PROTOCOL.md, ``examples`` has one example of each message. Nothing
of a running store imports this package.
"""
