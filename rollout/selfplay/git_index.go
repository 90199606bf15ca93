package selfplay

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// forgetHost clears what the index file of a prepared .git says about the files
// on the host: change times, device, inode, owner. Inodes alone would tell a
// solver which files are not links to the snapshot, so which ones the bug
// changed. Modification times and sizes stay, so that the index stays valid.
func forgetHost(indexFile, format string) error {
	data, err := os.ReadFile(indexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of a tree without files
	}
	if err != nil {
		return hostError("prepare .git", err)
	}
	if data, err = withoutHost(data, format); err != nil {
		return fmt.Errorf("prepare .git: %w", err)
	}
	if err := os.WriteFile(indexFile, data, 0o644); err != nil {
		return hostError("prepare .git", err)
	}
	return nil
}

// withoutHost does the work on an index of version 2 or 3 (gitformat-index).
func withoutHost(index []byte, format string) ([]byte, error) {
	const (
		header   = 12 // "DIRC", version, number of entries
		stat     = 40 // ctime 8, mtime 8, dev 4, ino 4, mode 4, uid 4, gid 4, size 4
		extended = 0x4000
	)
	sum := func(b []byte) []byte { s := sha1.Sum(b); return s[:] }
	if format == "sha256" {
		sum = func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	}
	hash := len(sum(nil))
	if len(index) < header+hash || string(index[:4]) != "DIRC" {
		return nil, fmt.Errorf("the index is no index")
	}
	version, entries := binary.BigEndian.Uint32(index[4:]), binary.BigEndian.Uint32(index[8:])
	if version != 2 && version != 3 {
		return nil, fmt.Errorf("the index has version %d, want 2 or 3", version)
	}
	body := bytes.Clone(index[:len(index)-hash])
	if !bytes.Equal(sum(body), index[len(body):]) {
		return nil, fmt.Errorf("the index does not match its checksum")
	}
	at := header
	for range entries {
		name := at + stat + hash + 2
		if name > len(body) {
			return nil, fmt.Errorf("the index ends early")
		}
		clear(body[at : at+8])
		clear(body[at+16 : at+24])
		clear(body[at+28 : at+36])
		if binary.BigEndian.Uint16(body[name-2:])&extended != 0 {
			name += 2
		}
		end := bytes.IndexByte(body[min(name, len(body)):], 0)
		if end < 0 {
			return nil, fmt.Errorf("the index ends early")
		}
		// One to eight NULs fill an entry up to a multiple of eight bytes.
		at += (name+end-at)/8*8 + 8
	}
	return append(body, sum(body)...), nil
}
