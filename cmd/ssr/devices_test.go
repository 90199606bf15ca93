package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/torch"
)

// TestDevices: one device is for all replicas, a list has one for each, and cuda is a
// GPU for each; the configuration writes what it read.
func TestDevices(t *testing.T) {
	found, _ := gpu.Devices()
	repeat := func(d torch.Device, n int) []torch.Device { return slices.Repeat([]torch.Device{d}, n) }
	for _, tc := range []struct {
		device   string
		replicas int
		want     []torch.Device
		err      string
		written  string
	}{
		{"", 2, repeat(torch.CPU, 2), "", ""},
		{"[]", 1, repeat(torch.CPU, 1), "", ""},
		{"cpu", 3, repeat(torch.CPU, 3), "", "device: cpu\n"},
		{"generic", 4, repeat(torch.Generic, 4), "", "device: generic\n"},
		{"[generic]", 2, repeat(torch.Generic, 2), "", "device: generic\n"},
		{"[generic, generic]", 2, repeat(torch.Generic, 2), "", "device:\n"},
		{"[generic, generic]", 3, nil, "lists 2 and policy.replicas is 3", ""},
		{"[generic, cpu]", 2, nil, "generic, cpu; put all replicas on GPUs", ""},
		{"[cuda:0, generic]", 2, nil, "", ""}, // the first that is not there, or a mixture
		{"cuda", len(found) + 1, nil, fmt.Sprintf("no cuda:%d", len(found)), "device: cuda\n"},
		{"cuda:0", 2, nil, "", ""},
	} {
		override, err := override(fmt.Sprintf("policy={device: %s, replicas: %d}", tc.device, tc.replicas))
		if err != nil {
			t.Fatal(err)
		}
		c, err := parseConfig([]document{override})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Policy.devices()
		if (err == nil) != (tc.want != nil) || err != nil && !strings.Contains(err.Error(), tc.err) || !slices.Equal(got, tc.want) {
			t.Errorf("device %q of %d replicas: %v (%v), want %v (%s)", tc.device, tc.replicas, got, err, tc.want, tc.err)
		}
		text, err := c.marshal()
		if err != nil || strings.Contains(string(text), "device:") != (tc.device != "" && tc.device != "[]") || !strings.Contains(string(text), tc.written) {
			t.Errorf("device %q is written as %s (%v)", tc.device, text, err)
		}
	}
}
