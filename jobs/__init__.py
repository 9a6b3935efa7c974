"""Jobs, as the service and the workers share them. `contract` does not use Redis; `views` only reads it."""
