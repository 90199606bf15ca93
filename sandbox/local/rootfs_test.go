//go:build linux

package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/sandbox"
)

// A root folder is shown whole, and nothing of this machine's system with it.
func TestRootFolder(t *testing.T) {
	// Not t.TempDir: its parent is closed to the sandboxes' uids.
	root, err := os.MkdirTemp(stateParent(), "ssr-root-[1]-") // no pattern
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	busybox := staticShell(t)
	for _, dir := range []string{".", "usr/bin", "opt/tool", "etc/app", "etc/private", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, busybox, filepath.Join(root, "usr/bin/busybox"))
	for name, text := range map[string]string{"opt/tool/version": "7\n", "etc/app/settings": "on\n", "etc/passwd": "image:x:0:0\n", "etc/private/key": "hunter2\n", "tmp/left": "x"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err = os.Chmod(filepath.Join(root, "etc/private"), 0o700)
	for _, name := range []string{"sh", "cat", "ls", "grep"} {
		if err == nil {
			err = os.Symlink("busybox", filepath.Join(root, "usr/bin", name))
		}
	}
	if err == nil {
		err = os.Symlink("usr/bin", filepath.Join(root, "bin"))
	}
	if err != nil {
		t.Fatal(err)
	}
	x, err := newBackendWith(t, Options{Root: root}).Start(t.Context(), sandbox.Spec{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"/bin/sh", "-c", "cat /opt/tool/version /etc/app/settings; grep -c agent /etc/passwd; ls /etc/private/key /tmp/left; echo x > /opt/tool/version"}})
	if err != nil || string(r.Stdout) != "7\non\n1\n" || r.OK() || !strings.Contains(string(r.Stderr), "Read-only file system") {
		t.Errorf("%+v %v\n%s\n%s", r, err, r.Stdout, r.Stderr)
	}
	if r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"python3", "-c", ""}}); err != nil || r.Exit != 127 {
		t.Errorf("this machine's programs are there: %+v %v", r, err)
	}
}

// staticShell finds a busybox that needs no libraries.
func staticShell(t *testing.T) string {
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox to make a small root folder of")
	}
	if out, err := exec.Command("ldd", path).CombinedOutput(); err == nil && !strings.Contains(string(out), "not a dynamic") {
		t.Skip("busybox is not static")
	}
	return path
}
