"""HTTP: routes that only translate, problem+json, events, metrics, the web page."""
