"""The commands of `gz-trio`. They use the public API alone."""
