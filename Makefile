# The two commands of the README are `make demo` and `make test`; both set up
# what they need first. A cgo build outside make:  eval "$(scripts/env.sh)"

SHELL := /bin/bash
GO ?= go
# CUDA=1 builds for GPUs as well; see docs/cuda.md. The tag is not cuda, which
# Gorgonia has a meaning of its own for.
export CUDA
tags = $(if $(CUDA),-tags gpu)
# In a recipe: the flags that cgo needs, then the command.
cgo = eval "$$(scripts/env.sh)" &&
# Packages that build and pass without cgo, libtorch or a GPU.
pure = ./kernels/device/... ./kernels/collective ./kernels/cuda ./kernels/cuda/cudatest ./model/token/... ./model/gen/... ./model/sched/... \
       ./model/safetensors/... ./model/serve/... ./sandbox/... ./rollout/... ./rl ./rl/train ./rl/train/replicas ./rl/train/tabular \
       ./internal/...
# The packages that are linked with libtorch.
native = ./kernels/native/... ./kernels/torch/... ./kernels/collective/c10d ./kernels/cuda/emulate ./model ./model/engine/... ./model/budget ./rl/train/learner/... ./cmd/...

.PHONY: help setup build demo test test-pure test-race test-cuda test-gpu-check gpu-check verify lint bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## system packages and libtorch, if they are not there yet
	@scripts/setup.sh

build: setup ## bin/ssr
	@$(cgo) $(GO) build $(tags) -o bin/ssr ./cmd/ssr

demo: build ## self-play on the bundled repository, to the end
	@scripts/demo.sh

# Pure packages are tested without the flags of the others: Go links them itself,
# against the host's C library, which the flags' headers do not fit.
test: setup test-pure ## the whole test suite
	@$(cgo) $(GO) test $(tags) -timeout 20m $(native)

test-pure: ## the pure packages, without cgo
	@CGO_ENABLED=0 $(GO) test -timeout 20m $(pure)

test-race: ## the pure packages, under the race detector
	@CGO_ENABLED=1 $(GO) test -timeout 20m -race -short $(pure)

test-cuda: ## the CUDA build: compiled and linked, its kernels to PTX, and on a GPU where one is
	@CUDA=1 scripts/test-cuda.sh

test-gpu-check: setup ## the GPU check's reports, and a rehearsal of what it measures
	@scripts/test-gpu-check.sh

gpu-check: ## all that needs a GPU, with a report; without one a rehearsal on the CPU
	@scripts/gpu/check.sh

verify: setup ## everything that CI checks
	@.ci/run

lint: setup ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	  [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	@untested=$$(comm -23 <($(GO) list ./... | sort) <($(GO) list $(pure) $(native) ./kernels/cuda/gpu | sort)); \
	  [ -z "$$untested" ] || { echo "in no test target of the Makefile:"; echo "$$untested"; exit 1; }
	@$(cgo) $(GO) vet ./...
	@# The tool without cgo, since its flags are for the code it reads.
	@CGO_ENABLED=0 GOBIN=$(CURDIR)/.toolchain/bin $(GO) install honnef.co/go/tools/cmd/staticcheck@v0.8.2
	@$(cgo) .toolchain/bin/staticcheck ./...

bench: build ## tokens and episodes per second, as JSON
	@bin/ssr bench --json

clean: ## build outputs; .toolchain stays (remove it by hand to unpack libtorch again)
	rm -rf bin
