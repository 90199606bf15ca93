//go:build linux

package docker

import (
	"strings"
	"testing"
)

// mountsSeen is a container's table, shortened, as Podman 4.3.1 with crun has made it of a
// request with everything that create asks for.
const mountsSeen = `600 500 0:70 / / ro,relatime - overlay overlay rw,lowerdir=x
601 600 0:71 / /dev rw,nosuid,noexec - tmpfs tmpfs rw,mode=755
602 600 0:72 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs rw
603 600 0:30 /s/1/workspace /workspace rw,relatime - tmpfs tmpfs rw
604 600 0:73 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
605 600 0:30 /s/1/empty /run ro,relatime shared:1 - tmpfs tmpfs rw
606 602 0:74 / /sys ro,relatime - tmpfs tmpfs rw,size=0k
608 602 0:75 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup cgroup rw
610 604 0:71 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,mode=755
609 601 0:5 /null /dev/null rw,nosuid - devtmpfs udev rw
607 604 0:73 /sys /proc/sys ro,relatime - proc proc rw
`

func TestMountsThatAnEnginePassedOver(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"as asked for":    {"", "", ""},
		"/sys is shown":   {"606 602 0:74 / /sys", "606 602 0:74 / /sys/fs", "/sys shows the machine's devices"},
		"a control group": {"608 602", "608 606", "/sys/fs/cgroup can be written"},
		"a folder more":   {"/run ro", "/run rw", "/run can be written"},
		"a disk":          {"/null /dev/null", "/sda /dev/sda", "/dev/sda can be written"},
		"a writable root": {"/ / ro", "/ / rw", "/ can be written"},
		"/proc/sys":       {"/proc/sys ro", "/proc/sys rw", "/proc/sys can be written"},
		"no table":        {" - ", " ", "not understood"},
	} {
		table := mountsSeen
		if c.old != "" {
			table = strings.ReplaceAll(table, c.old, c.new)
		}
		err := checkMounts(table)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
