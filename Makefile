# make train   train the demo set with the defaults
# make test    run the whole test suite
# Each makes the environment first (see scripts/environment.sh) and costs nothing to repeat.

PYTHON_BIN = .venv/bin/python

.PHONY: environment train test test-simd lint

environment:
	@scripts/environment.sh

train: environment
	$(PYTHON_BIN) -m engine.train

test: environment
	$(PYTHON_BIN) -m pytest --numprocesses auto --dist loadfile

test-simd:
	@scripts/environment.sh simd
	@.venv-simd/bin/python -c "from PIL import features; from loaders.pixels import pillow_version as version; \
		assert 'simd' in version() and features.check('webp'), version(); print('Testing with', version())"
	.venv-simd/bin/python -m pytest tests/test_pixels.py tests/test_loader_contract.py -k "not dali"

lint: environment
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
