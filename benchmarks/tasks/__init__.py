"""One small file per task; each defines ``TASK``."""
