"""How requests reach a gateway."""
