"""The room of the toy paper."""
