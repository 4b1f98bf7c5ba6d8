"""Pictures, from the hub, bundled, or drawn."""
