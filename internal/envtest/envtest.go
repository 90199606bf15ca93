// Package envtest is what tests ask of the machine that they run on.
package envtest

import (
	"cmp"
	"net"
	"os"
	"testing"
)

// Device is the device that tests of devices run on, as parse reads its name: the one
// that SSR_TEST_DEVICE names, or generic, which stands for any.
func Device[D any](t testing.TB, parse func(name string) (D, error)) D {
	t.Helper()
	d, err := parse(cmp.Or(os.Getenv("SSR_TEST_DEVICE"), "generic"))
	if err != nil {
		t.Fatalf("SSR_TEST_DEVICE: %v", err)
	}
	return d
}

// FreePort is a TCP port of the loopback that nobody listens at.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
