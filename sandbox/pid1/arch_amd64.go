//go:build linux

package pid1

import (
	_ "embed"

	"golang.org/x/sys/unix"
)

//go:embed init/pid1_amd64
var program []byte

const auditArch = unix.AUDIT_ARCH_X86_64

var forbiddenHere = []uint32{
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_USELIB, unix.SYS__SYSCTL,
	unix.SYS_CREATE_MODULE, unix.SYS_NFSSERVCTL,
}
