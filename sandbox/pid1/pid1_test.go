//go:build linux

package pid1

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"testing"
)

// The embedded programs are built from the sources beside them.
func TestFirstProcessIsBuiltFromItsSource(t *testing.T) {
	var source []byte
	for _, name := range []string{"sys.h", "launch.c", "pid1.c"} { // as build.sh has them
		text, err := os.ReadFile("init/" + name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	want := fmt.Appendf(nil, "pid1 source %x", sha256.Sum256(source))
	for _, name := range []string{"init/pid1_amd64", "init/pid1_arm64"} {
		program, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(program, want) {
			t.Errorf("%s was built from another source: run go generate ./sandbox/pid1", name)
		}
	}
}
