/* System calls of Linux without a C library, and what both parts of the program
 * share. A call returns a result or the negative error. */

typedef unsigned int u32;
typedef unsigned long u64;

#if defined(__x86_64__)
enum {
	SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_lseek = 8, SYS_mmap = 9, SYS_munmap = 11,
	SYS_rt_sigprocmask = 14, SYS_getpid = 39, SYS_clock_gettime = 228, SYS_ppoll = 271, SYS_signalfd4 = 289, SYS_pipe2 = 293,
	SYS_sendto = 44, SYS_recvmsg = 47, SYS_clone = 56, SYS_execve = 59,
	SYS_wait4 = 61, SYS_kill = 62, SYS_fcntl = 72, SYS_chdir = 80,
	SYS_umask = 95, SYS_setsid = 112, SYS_prctl = 157, SYS_setrlimit = 160, SYS_unshare = 272,
	SYS_exit_group = 231, SYS_openat = 257, SYS_dup3 = 292, SYS_close_range = 436,
	SYS_ioctl = 16, SYS_socket = 41, SYS_fchdir = 81, SYS_geteuid = 107, SYS_getegid = 108, SYS_capset = 126,
	SYS_pivot_root = 155, SYS_umount2 = 166, SYS_sethostname = 170, SYS_mkdirat = 258, SYS_mknodat = 259, SYS_symlinkat = 266, SYS_faccessat = 269,
	SYS_open_tree = 428, SYS_move_mount = 429, SYS_fsopen = 430, SYS_fsconfig = 431, SYS_fsmount = 432, SYS_mount_setattr = 442,
};
static inline long sys(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r)
		: "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
enum {
	SYS_dup3 = 24, SYS_fcntl = 25, SYS_chdir = 49, SYS_openat = 56,
	SYS_close = 57, SYS_pipe2 = 59, SYS_lseek = 62, SYS_read = 63, SYS_write = 64, SYS_ppoll = 73, SYS_signalfd4 = 74,
	SYS_clock_gettime = 113, SYS_rt_sigprocmask = 135, SYS_getpid = 172, SYS_exit_group = 94,
	SYS_kill = 129, SYS_setsid = 157, SYS_setrlimit = 164, SYS_umask = 166,
	SYS_prctl = 167, SYS_sendto = 206, SYS_recvmsg = 212, SYS_munmap = 215,
	SYS_close_range = 436, SYS_unshare = 97, SYS_clone = 220, SYS_execve = 221, SYS_mmap = 222, SYS_wait4 = 260,
	SYS_ioctl = 29, SYS_mknodat = 33, SYS_mkdirat = 34, SYS_symlinkat = 36, SYS_umount2 = 39, SYS_pivot_root = 41,
	SYS_faccessat = 48, SYS_fchdir = 50, SYS_capset = 91, SYS_sethostname = 161, SYS_geteuid = 175, SYS_getegid = 177, SYS_socket = 198,
	SYS_open_tree = 428, SYS_move_mount = 429, SYS_fsopen = 430, SYS_fsconfig = 431, SYS_fsmount = 432, SYS_mount_setattr = 442,
};
static inline long sys(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0)
		: "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#else
#error "no system calls for this processor"
#endif
#define S(n, a, b, c) sys(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)

enum {
	ENOENT = 2, EINTR = 4, EINVAL = 22,
	CHANNEL = 3, /* the socket to the trainer */
	AT_FDCWD = -100, O_WRONLY = 1, O_RDWR = 2, O_CLOEXEC = 02000000,
	CLONE_NEWUSER = 0x10000000, SIGKILL = 9, SIGCHLD = 17, WALL = 0x40000000,
	PR_SET_DUMPABLE = 4, PR_SET_SECCOMP = 22, PR_SET_NO_NEW_PRIVS = 38, SECCOMP_MODE_FILTER = 2,
};

static inline u64 length(const char *s)
{
	u64 n = 0;
	while (s[n])
		n++;
	return n;
}

static inline void say(const char *s) { S(SYS_write, 2, s, length(s)); }

static inline _Noreturn void leave(int status)
{
	for (;;)
		S(SYS_exit_group, status, 0, 0);
}

/* confine applies a seccomp filter of n bytes to this process and its children,
 * for good, and lets none of them gain privileges. */
static inline long confine(void *filter, u64 n)
{
	struct { unsigned short len, pad[3]; void *filter; } program = {n / 8, {0}, filter};
	long r = sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0);
	return r < 0 ? r : S(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* launch makes a sandbox and executes the first process in it; see launch.c. */
_Noreturn void launch(int argc, char **argv);
