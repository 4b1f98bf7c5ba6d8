"""Reports on all studies in a folder, as Markdown and as one HTML file: without torch or Hydra."""
