"""A Trio client for language-model gateways whose replies survive a key that dies in mid-reply."""
