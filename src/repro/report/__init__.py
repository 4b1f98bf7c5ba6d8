"""Reports over all studies in a folder: terminal, Markdown, and one HTML file. No torch, no Hydra."""
