"""Who is tractable, at what cost, and which M-step rule each parameter gets: decided from shapes and structure."""
