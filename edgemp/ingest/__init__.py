"""Ingest turns a user's network (ONNX file or torch module) into a `Network` with fixed inputs."""
