"""Spans for OpenTelemetry: recording, export, and propagation of a trace with a job."""
