"""Every knob of the project, as Hydra config groups."""
