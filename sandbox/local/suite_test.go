//go:build linux

package local

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSuite(t *testing.T) {
	onBoth(t, func(t *testing.T, launcher string) {
		sandboxtest.Run(t, sandboxtest.Config{New: func(t testing.TB) sandbox.Backend {
			b := newBackendWith(t, Options{Launcher: launcher})
			t.Cleanup(func() { nothingLeft(t, b) })
			return b
		}})
	})
}

// onBoth runs a test with each launcher.
func onBoth(t *testing.T, test func(t *testing.T, launcher string)) {
	for _, launcher := range []string{LauncherNative, LauncherBwrap} {
		t.Run(launcher, func(t *testing.T) { test(t, launcher) })
	}
}

// What touches files, again where workspaces are copies.
func TestSuiteOnCopies(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Config{
		New: func(t testing.TB) sandbox.Backend {
			b := newBackendWith(t, Options{Copy: true})
			t.Cleanup(func() { nothingLeft(t, b) })
			return b
		},
		Only: []string{"Files", "Trees", "Harvest", "Life"},
	})
}

// nothingLeft checks a closed backend's state folder and control groups. It is
// registered before the suite closes the backend, so it runs after.
func nothingLeft(t testing.TB, b *Backend) {
	list, err := os.ReadDir(b.opts.StateDir)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range list {
		if b.opts.StateDir+"/"+e.Name() != b.rootfs {
			t.Errorf("%s is left in the state folder", e.Name())
		}
	}
	for _, dir := range b.groups.parent {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("control group %s is left", dir)
		}
	}
}
