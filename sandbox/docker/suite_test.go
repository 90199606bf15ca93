//go:build linux

package docker

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/local"
	"github.com/ssr-go/ssr/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The suite runs against a real engine where SSR_DOCKER_IMAGE names an image
// that it has, with bash, python3 and git; SSR_DOCKER_RUNTIME may name an OCI
// runtime, and SSR_DOCKER_ALLOW protections that may be missing, with commas between.
const (
	imageVariable   = "SSR_DOCKER_IMAGE"
	runtimeVariable = "SSR_DOCKER_RUNTIME"
	allowVariable   = "SSR_DOCKER_ALLOW"
)

func allowed() []string {
	return strings.FieldsFunc(os.Getenv(allowVariable), func(r rune) bool { return r == ',' })
}

// newReal makes a backend on a real engine, or skips.
func newReal(t testing.TB) *local.Backend {
	image := os.Getenv(imageVariable)
	if image == "" {
		t.Skip(imageVariable + " names no image: not run against a real engine")
	}
	b, err := New(Options{Image: image, Runtime: os.Getenv(runtimeVariable), Allow: allowed(), StateDir: stateDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stateDir makes a folder that the sandboxes' users can reach, which t.TempDir is not.
func stateDir(t testing.TB) string {
	parent := os.TempDir()
	if _, err := os.Stat("/dev/shm"); err == nil {
		parent = "/dev/shm"
	}
	dir, err := os.MkdirTemp(parent, "ssr-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "sandboxes")
}

func TestSuite(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Config{New: func(t testing.TB) sandbox.Backend { return newReal(t) }, Unenforced: allowed()})
}

func TestProbe(t *testing.T) {
	b := newReal(t)
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	caps, err := b.Probe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for k, how := range caps.Enforced {
		t.Logf("%s: %s", k, how)
	}
	t.Log(caps.Notes)
}
