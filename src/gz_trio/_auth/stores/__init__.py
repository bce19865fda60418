"""Where the key lives: the protocol that every key store follows, and the stores that come with it."""
