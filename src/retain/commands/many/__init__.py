"""Many runs at a time, each a process of its own: what commands share that start some."""
