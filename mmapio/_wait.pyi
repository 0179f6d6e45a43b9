HAS_FUTEX: bool
HAS_ROBUST_MUTEX: bool
MUTEX_LAYOUT: int

def pid_namespace() -> int: ...
