"""A rewritten model in the situations its owner puts it in: training loops, wrappers, files, exports."""
