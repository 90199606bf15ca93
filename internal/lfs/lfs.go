// Package lfs knows what Git LFS leaves in the place of a file that it has not fetched.
package lfs

import (
	"bytes"
	"errors"
)

var errPointer = errors.New("this is a pointer of Git LFS, not the file itself; run git lfs pull in its folder")

// Check returns an error where data is a pointer, whose first line is this by Git LFS's
// specification of pointers (docs/spec.md).
func Check(data []byte) error {
	if bytes.HasPrefix(data, []byte("version https://git-lfs.github.com/spec/")) {
		return errPointer
	}
	return nil
}
