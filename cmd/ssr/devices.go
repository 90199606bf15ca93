package main

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/ssr-go/ssr/kernels/torch"
)

// deviceNames are one device for all replicas, or a list of one for each. In YAML a
// single one is a text.
type deviceNames []string

// gpus, as the name of a device, is as many GPUs as there are replicas, from the first
// on; of several processes of a machine each takes the one of its number there.
const gpus = "cuda"

func (d *deviceNames) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	names := []string{""}
	into := any(&names[0])
	if n.Kind == yaml.SequenceNode {
		into = &names
	}
	if err := n.Decode(into); err != nil {
		return err
	}
	if len(names) == 1 && names[0] == "" {
		names = nil
	}
	*d = names
	return nil
}

func (d deviceNames) MarshalYAML() (any, error) {
	if len(d) == 1 {
		return d[0], nil
	}
	return []string(d), nil
}

func (d deviceNames) String() string { return strings.Join(d, ", ") }

// check reads the names.
func (d deviceNames) check() error {
	for _, name := range d {
		if _, err := torch.ParseDevice(name); err != nil {
			return err
		}
	}
	return nil
}

// devices are those of the replicas, in their order.
func (c policyConfig) devices() ([]torch.Device, error) {
	n := max(1, c.Replicas)
	names := slices.Clone(c.Device)
	switch {
	case len(names) == 0:
		names = slices.Repeat([]string{torch.CPU.String()}, n)
	case len(names) == 1 && names[0] == gpus:
		names = nil
		for i := range n {
			names = append(names, torch.CUDA(i).String())
		}
	case len(names) == 1:
		names = slices.Repeat(names, n)
	case len(names) != n:
		return nil, fmt.Errorf("policy.device lists %d and policy.replicas is %d; give one for each", len(names), n)
	}
	var all []torch.Device
	for _, name := range names {
		d, err := openDevice(name)
		if err != nil {
			return nil, fmt.Errorf("policy.device: %w", err)
		}
		if _, gpu := d.GPU(); gpu && slices.Contains(all, d) {
			return nil, fmt.Errorf("policy.device: two of %d replicas on %v; each needs a GPU of its own: give %s, or a list", n, d, gpus)
		}
		if len(all) > 0 && d != all[0] && (d < torch.CUDA(0) || all[0] < torch.CUDA(0)) {
			return nil, fmt.Errorf("policy.device: %v; put all replicas on GPUs or all on one other device", c.Device)
		}
		all = append(all, d)
	}
	return all, nil
}
