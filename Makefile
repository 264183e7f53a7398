# The commands of a person who has a clone. The build itself is Meson's: meson.build.
BUILD ?= build
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

build:
	@tools/install-deps build
	@[ -f $(BUILD)/build.ninja ] || meson setup $(BUILD) >.meson.log 2>&1 || { cat .meson.log; rm -f .meson.log; exit 1; }
	@rm -f .meson.log
	@ninja -C $(BUILD) --quiet
	@echo "$(BUILD)/dirigent is built."

# Everything on this machine with three functions, until Ctrl-C. UP gives more flags to `dirigent up`.
run: build
	@tools/install-deps run
	@$(MAKE) --silent -C examples/c
	@exec $(SUDO) $(BUILD)/dirigent up --apply examples/apply.yaml $(UP)

test:
	@tools/install-deps build test
	@test/run

bench: build
	@tools/install-deps bench
	@exec $(SUDO) bench/run $(BUILD)

# A cluster of ten hosts that are network namespaces, until Ctrl-C: deploy/cluster --help says how to break it.
cluster: build
	@tools/install-deps run test
	@exec $(SUDO) deploy/cluster --build $(BUILD) up

# A control plane with thousands of simulated workers.
bench-cluster: build
	@exec bench/cluster $(BUILD)

install: build
	@$(SUDO) meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf $(BUILD) build-test build-asan build-tsan
	@$(MAKE) --silent -C examples/c clean

.PHONY: build run cluster test bench bench-cluster install clean
