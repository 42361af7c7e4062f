def to_dot(*a, **k): return None
