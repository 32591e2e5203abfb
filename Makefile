LOCK = uv pip compile --universal --fork-strategy fewest --python-version 3.11 --extra dev pyproject.toml -o requirements.lock --no-header --no-annotate -q
lock:
	$(LOCK)
