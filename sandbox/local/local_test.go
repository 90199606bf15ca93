//go:build linux

package local

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/sandbox"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "a.txt"), []byte("hello\n"), 0o644)
	state, err := os.MkdirTemp("", "ssr-test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(state)
	b, err := New(Options{StateDir: filepath.Join(state, "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	os.Chmod(state, 0o755)
	x, err := b.Start(context.Background(), sandbox.Spec{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	r, err := x.Exec(context.Background(), sandbox.Cmd{Args: []string{"bash", "-c", "id; cat a.txt; pwd; env; ls -la / /etc /tmp /dev; echo x >b; cat /proc/self/mountinfo; python3 -c 'print(1)'; git init -q . && git add . && git commit -qm x && git log; exit 3"}})
	t.Logf("%+v\n%s\n%s", r.Exit, r.Stdout, r.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := x.Harvest(context.Background())
	if err != nil || len(ch) != 1 || ch[0].Path != "b" || strings.TrimSpace(string(ch[0].Data)) != "x" {
		t.Fatal(ch, err)
	}
}
