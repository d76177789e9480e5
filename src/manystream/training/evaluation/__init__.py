"""How well a network holds: by class, by subset of the streams, and with disturbed sensors."""
