# Needs make and Python 3.11 or newer, nothing else: a virtual environment is made on first use and reused afterwards.
#
#   make demo     train on handwritten digits with compression and show the result
#   make check    everything a change must pass
#
# VENV names the environment's folder, PYTHON the interpreter to make it with.

VENV   ?= .venv
PYTHON ?=

bin     := $(VENV)/bin
inputs  := pyproject.toml constraints.txt
install := tools/make_venv.sh "$(VENV)" "$(PYTHON)"

.DEFAULT_GOAL := help
.PHONY: help demo check format lint types layers files names test docs bench-smoke serve clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null || grep '##' Makefile

demo: $(VENV)/.stamp-cli ## train on the digits data set with compression, and show the result
	$(bin)/compressm train digits

check: $(VENV)/.stamp-dev ## format, lint, types, import layers, files, names, docs, benchmark smoke, tests
	@$(bin)/python tools/check.py all

format lint types layers files names test docs bench-smoke: $(VENV)/.stamp-dev ## one part of the check
	@$(bin)/python tools/check.py $@

serve: $(VENV)/.stamp-dev ## the documentation, served locally
	$(bin)/python -m mkdocs serve

clean: ## remove what the other targets made, the virtual environment included
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The tools for development contain the command line's, so one environment serves both.
$(VENV)/.stamp-dev: $(inputs) tools/make_venv.sh
	@$(install) dev
	@touch $@ $(VENV)/.stamp-cli

$(VENV)/.stamp-cli: $(inputs) tools/make_venv.sh
	@$(install) cli,fast
	@touch $@
