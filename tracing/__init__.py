"""Spans for OpenTelemetry: whether they are recorded, where they go, and how a trace travels with a job."""
