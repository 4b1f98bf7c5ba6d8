"""From claims.yaml and a study's runs to verdicts."""
