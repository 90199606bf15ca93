//go:build linux

package local

import (
	_ "embed"

	"golang.org/x/sys/unix"
)

//go:generate pid1/build.sh amd64
//go:generate pid1/build.sh arm64

//go:embed pid1/pid1_amd64
var pid1 []byte

const auditArch = unix.AUDIT_ARCH_X86_64

var forbiddenHere = []uint32{
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_USELIB, unix.SYS__SYSCTL,
	unix.SYS_CREATE_MODULE, unix.SYS_NFSSERVCTL,
}
