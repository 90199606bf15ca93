package sandboxtest

// attempt succeeds where one of the Python expressions raises nothing.
func attempt(expressions ...string) string {
	program := "import os, socket, sys\nsocket.setdefaulttimeout(1)\ndef reached(f):\n    try:\n        f()\n        return True\n    except OSError as e:\n        print(e)\n        return False\n"
	program += "sys.exit(0 if any(["
	for _, e := range expressions {
		program += "\n    reached(lambda: " + e + "),"
	}
	return python(program + "\n]) else 1)")
}

var networkPrograms = []hostile{
	{name: "control: its own loopback", program: python(`import socket
s = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(s.getsockname())
c.send(b"works")
print(s.accept()[0].recv(10).decode())`), want: prints("works\n")},
	{name: "control: the detector sees a connection", program: "python3 -c 'import socket, time; s = socket.create_server((\"127.0.0.1\", 8080)); open(\"up\", \"w\"); time.sleep(60)' & until [ -e up ]; do sleep 0.1; done\n" +
		attempt(`socket.create_connection(("127.0.0.1", 8080))`), want: through},

	{name: "the host's port", needs: "network", program: attempt(`socket.create_connection(("127.0.0.1", PORT))`, `socket.create_connection(("::1", PORT))`, `socket.create_connection(("0.0.0.0", PORT))`), want: held},
	{name: "the internet", needs: "network", program: attempt(`socket.create_connection(("1.1.1.1", 53))`, `socket.create_connection(("2606:4700:4700::1111", 53))`), want: held},
	{name: "the metadata service of a cloud", needs: "network", program: attempt(`socket.create_connection(("169.254.169.254", 80))`), want: held},
	{name: "datagrams", needs: "network", program: attempt(`socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53))`, `socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("2001:4860:4860::8888", 53))`), want: held},
	{name: "broadcast and multicast", needs: "network", program: attempt(`socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("224.0.0.251", 5353))`, `socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("10.255.255.255", 9))`), want: held},
	{name: "names", needs: "network", program: attempt(`socket.getaddrinfo("example.org", 80)`), want: held},
	{name: "an abstract socket of the host", needs: "network", program: attempt(`socket.socket(socket.AF_UNIX).connect("\0SOCKET")`), want: held},
	{name: "sockets by path", needs: "network", program: "find /run /var/run /tmp -type s 2>/dev/null | grep -q .", want: held},
	{name: "raw and packet sockets", needs: "network", program: attempt(`socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)`, `socket.socket(socket.AF_PACKET, socket.SOCK_RAW)`), want: held},
	{name: "the hypervisor's sockets", needs: "syscalls", program: attempt(`socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)`), want: held},
	{name: "exotic sockets", needs: "syscalls", program: attempt(`socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)`, `socket.socket(socket.AF_CAN, socket.SOCK_RAW)`, `socket.socket(socket.AF_BLUETOOTH, socket.SOCK_STREAM)`, `socket.socket(socket.AF_TIPC, socket.SOCK_STREAM)`), want: held},
	{name: "a route out", needs: "network", program: "grep -v -e Iface -e '^lo' /proc/net/route | grep -q . || grep -v -e '^ *lo:' -e '|' /proc/net/dev | grep -q . || ip link add d type dummy || ip route add default dev lo", want: held},
	{name: "shared memory of the host", needs: "network", program: "ipcs -m | grep -q 0x || ipcs -s | grep -q 0x || ipcs -q | grep -q 0x", want: held},
	{name: "a low port of the host", needs: "network", program: "python3 -c 'import socket; socket.create_server((\"127.0.0.1\", PORT))' && echo bound its own", want: through},
}
