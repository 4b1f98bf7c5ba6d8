"""What lies on disk: papers, studies, runs, series, summaries, and where they came from."""
