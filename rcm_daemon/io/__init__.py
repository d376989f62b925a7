"""Sockets and the state folder: the edges of the daemon."""
