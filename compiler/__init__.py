"""The front door: compile, differentiate, trace, explain."""
