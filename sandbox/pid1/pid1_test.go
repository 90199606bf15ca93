//go:build linux

package pid1

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"testing"
)

// The embedded programs are built from the source beside them.
func TestFirstProcessIsBuiltFromItsSource(t *testing.T) {
	source, err := os.ReadFile("init/pid1.c")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Appendf(nil, "pid1 source %x", sha256.Sum256(source))
	for _, name := range []string{"init/pid1_amd64", "init/pid1_arm64"} {
		program, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(program, want) {
			t.Errorf("%s was built from another pid1.c: run go generate ./sandbox/pid1", name)
		}
	}
}
