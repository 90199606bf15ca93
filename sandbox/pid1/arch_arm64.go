//go:build linux

package pid1

import (
	_ "embed"

	"golang.org/x/sys/unix"
)

//go:embed init/pid1_arm64
var program []byte

const auditArch = unix.AUDIT_ARCH_AARCH64

var forbiddenHere = []uint32{unix.SYS_NFSSERVCTL}
