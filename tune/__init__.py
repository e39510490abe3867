"""Many runs: a search over architectures and losses on Ray Tune. medgan knows one run."""
