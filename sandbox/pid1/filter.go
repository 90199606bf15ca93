//go:build linux

package pid1

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Classic BPF and seccomp constants that x/sys does not name in one place.
const (
	bpfLoad    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfEqual   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfAtLeast = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	bpfAnySet  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	bpfReturn  = unix.BPF_RET | unix.BPF_K

	seccompAllow = 0x7fff_0000
	seccompErrno = 0x0005_0000 // plus the error

	// Offsets in struct seccomp_data; arguments are 64 bits, low half first.
	dataNumber, dataArch, dataArg0, dataArg1 = 0, 4, 16, 24

	// Every namespace flag of clone. CLONE_NEWTIME is not one: there it is part of the signal.
	cloneNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
		unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
)

// forbidden system calls fail with EPERM: ways to the kernel that tests and
// tools do not need and that namespaces and an unprivileged uid do not close.
var forbidden = append([]uint32{
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_REBOOT, unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_QUOTACTL,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_VHANGUP,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX,
	unix.SYS_FANOTIFY_INIT, unix.SYS_KCMP, unix.SYS_MEMFD_SECRET, unix.SYS_KEXEC_FILE_LOAD,
}, forbiddenHere...)

// absent system calls fail with ENOSYS, to which programs have an answer: they
// use clone (whose flags can be checked) and ordinary input and output.
var absent = []uint32{
	unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
}

// families of sockets that may be made. A network namespace does not confine
// AF_VSOCK, which reaches the hypervisor.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// Filter is the seccomp filter of a sandbox as the launchers and the stream read
// it: an array of struct sock_filter. It denies what is listed and allows the rest.
func Filter() []byte {
	var p filter
	p.op(bpfLoad, dataArch)
	p.unless(auditArch, unix.ENOSYS)
	p.op(bpfLoad, dataNumber)
	// The x32 numbers of amd64, which repeat the table under other numbers.
	p.jump(bpfAtLeast, 0x4000_0000, 0, 1)
	p.fail(unix.ENOSYS)
	for _, n := range forbidden {
		p.jump(bpfEqual, n, 0, 1)
		p.fail(unix.EPERM)
	}
	for _, n := range absent {
		p.jump(bpfEqual, n, 0, 1)
		p.fail(unix.ENOSYS)
	}
	p.jump(bpfEqual, unix.SYS_CLONE, 0, 4)
	p.op(bpfLoad, dataArg0)
	p.jump(bpfAnySet, cloneNamespaces, 0, 1)
	p.fail(unix.EPERM)
	p.op(bpfReturn, seccompAllow)

	p.jump(bpfEqual, unix.SYS_IOCTL, 0, 5)
	p.op(bpfLoad, dataArg1)
	p.jump(bpfEqual, unix.TIOCSTI, 1, 0)
	p.jump(bpfEqual, unix.TIOCLINUX, 0, 1)
	p.fail(unix.EPERM)
	p.op(bpfReturn, seccompAllow)

	p.jump(bpfEqual, unix.SYS_SOCKET, 1, 0)
	p.jump(bpfEqual, unix.SYS_SOCKETPAIR, 0, uint8(len(families)+2))
	p.op(bpfLoad, dataArg0)
	for i, f := range families {
		p.jump(bpfEqual, f, uint8(len(families)-i), 0)
	}
	p.fail(unix.EAFNOSUPPORT)
	p.op(bpfReturn, seccompAllow)
	return p
}

type filter []byte

func (p *filter) jump(code uint16, k uint32, yes, no uint8) {
	*p = binary.NativeEndian.AppendUint16(*p, code)
	*p = append(*p, yes, no)
	*p = binary.NativeEndian.AppendUint32(*p, k)
}

func (p *filter) op(code uint16, k uint32)      { p.jump(code, k, 0, 0) }
func (p *filter) fail(e unix.Errno)             { p.op(bpfReturn, seccompErrno|uint32(e)) }
func (p *filter) unless(k uint32, e unix.Errno) { p.jump(bpfEqual, k, 1, 0); p.fail(e) }
