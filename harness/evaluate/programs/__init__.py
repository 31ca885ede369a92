"""Generated programs: run in a sandbox, judged apart from it."""
