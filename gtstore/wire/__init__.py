"""Bytes <-> messages, with no input or output of its own (PROTOCOL.md sections 2 to 9).

``fields`` holds the types that a field can have, ``messages`` the table of all messages, errors and
limits, ``codec`` turns one message into one frame and back, ``stream`` cuts a stream of bytes into
frames, ``explain`` says bytes in words, and ``describe`` writes what is generated of docs/.
"""
