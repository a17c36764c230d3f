"""Every figure of the paper: numbers first (frozen dataclasses), then a drawing of them. `gallery` makes them all."""
