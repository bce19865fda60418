"""Where keys live and how they are refreshed."""
