"""Bytes to events and back, and every decision: sans-I/O, imports neither Trio nor a socket."""
