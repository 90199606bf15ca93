// Package worldtest finds and builds the repositories that are bundled in
// testdata/worlds, for tests of the packages that play in them.
package worldtest

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// Root returns the root of this module's source, as it was when compiled.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Dir returns the folder of a world: patches/, commit, artifacts/.
func Dir(name string) string {
	return filepath.Join(Root(), "testdata", "worlds", name)
}

// Artifact returns the folder of one of a world's hand-made artifacts.
func Artifact(world, name string) string {
	return filepath.Join(Dir(world), "artifacts", name)
}

// Make builds the world with its whole history in dir, which is created. It
// takes about a second and needs bash and git.
func Make(ctx context.Context, dir, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(Root(), "scripts", "make-world.sh"), dir, name)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make world %s in %s: %w\n%s", name, dir, err, out)
	}
	return nil
}
