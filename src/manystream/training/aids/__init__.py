"""Training aids for networks of several streams; each is off unless asked for."""
