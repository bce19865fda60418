"""Where protocol, authentication and transport meet: sessions, replies, gateways."""
