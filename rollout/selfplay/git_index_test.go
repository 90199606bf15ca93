package selfplay

import (
	"bytes"
	"crypto/sha1"
	"os"
	"path/filepath"
	"testing"
)

// What is cleared of an index changes nothing that git lists of it, and a
// broken index is an error.
func TestIndexWithoutHost(t *testing.T) {
	dir := gitRepo(t, map[string]string{"a": "1", "d/longer-name-of-a-file": "2", "é": "3", "x/y/z": "4", "1234567": "5", "12345678": "6"})
	name := filepath.Join(dir, ".git", "index")
	before := git(t, dir, "ls-files", "-s", "--eol")
	index, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := forgetHost(name, "sha1"); err != nil {
		t.Fatal(err)
	}
	if after := git(t, dir, "ls-files", "-s", "--eol"); after != before {
		t.Errorf("git lists\n%s\nwant\n%s", after, before)
	}
	if out := git(t, dir, "fsck"); out != "" {
		t.Error(out)
	}
	for n := range len(index) {
		if _, err := withoutHost(index[:n], "sha1"); err == nil {
			t.Errorf("the first %d bytes of %d are taken for an index", n, len(index))
		}
	}
}

func FuzzIndexWithoutHost(f *testing.F) {
	f.Add([]byte("DIRC\x00\x00\x00\x02\x00\x00\x00\x01" + string(make([]byte, 100))))
	f.Add([]byte("DIRC\x00\x00\x00\x03\xff\xff\xff\xff" + string(bytes.Repeat([]byte{0xff}, 100))))
	f.Fuzz(func(t *testing.T, data []byte) {
		sum := sha1.Sum(data)
		data = append(data, sum[:]...)
		once, err := withoutHost(data, "sha1")
		if err != nil {
			return
		}
		if len(once) != len(data) {
			t.Fatalf("%d bytes became %d", len(data), len(once))
		}
		twice, err := withoutHost(once, "sha1")
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("clearing again changes it: %v", err)
		}
	})
}
