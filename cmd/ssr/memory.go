package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/budget"
	"github.com/ssr-go/ssr/model/engine"
)

// fits reports the plan and refuses one for which the machine has too little; an
// unknown amount, 0, is taken to be enough.
func fits(o output, p budget.Plan, available int64) error {
	fmt.Fprintf(o.err, "memory: %s; %s are free\n", p, budget.Size(available))
	if available == 0 || p.All() <= available {
		return nil
	}
	return fmt.Errorf("the run needs %s of memory and %s are free", budget.Size(p.All()), budget.Size(available))
}

// room is the memory that there is: on the device of each replica, as configured or what
// is free of the GPU that has least, and for all that this process does; 0 is unknown.
// The processes of a machine have an equal part of its memory each.
type room struct {
	on                torch.Device // the first replica's
	device, available int64
}

func (c config) room(ps *processes) (room, error) {
	devices, err := c.Policy.devices()
	if err != nil {
		return room{}, err
	}
	r := room{on: devices[0], device: c.Policy.DeviceBytes}
	if _, ok := r.on.GPU(); !ok {
		r.available = availableMemory() / ps.sharing()
		return r, nil
	}
	for i := 0; i < len(devices) && c.Policy.DeviceBytes == 0; i++ {
		number, _ := devices[i].GPU()
		free, err := gpu.Free(number)
		if err != nil {
			return room{}, err
		}
		if i == 0 || free < r.device {
			r.device = free
		}
	}
	r.available = int64(len(devices)) * r.device
	return r, nil
}

// freeOf is the memory that is free of a GPU, or that this process may have.
func freeOf(d torch.Device) (int64, error) {
	if number, ok := d.GPU(); ok {
		return gpu.Free(number)
	}
	return availableMemory(), nil
}

// cacheOf is the memory of the KV cache of an engine: what is asked for, or of a GPU what
// a step's activations and other bytes leave, or the engine's default.
func cacheOf(p *model.Policy, o engine.Options, other int64) (int64, error) {
	cache, activations, _ := engine.Memory(p.Config(), p.Options(), p.Workers().Size(), o)
	number, ok := p.Device().GPU()
	if !ok || o.CacheBytes > 0 {
		return cache, nil
	}
	free, err := gpu.Free(number)
	activations += other
	if err == nil && free <= activations {
		err = fmt.Errorf("%v has %s free, and a step of generation takes %s; generate fewer sequences side by side", p.Device(), budget.Size(free), budget.Size(activations))
	}
	return free - activations, err
}

// planned stands for the kernels of a GPU in a plan, which runs none.
type planned struct{ cuda.Recorder }

// memory plans what the run needs whose policy has this shape, in this process.
func (c config) memory(shape model.Config, r room, ps *processes) (budget.Plan, error) {
	o, err := c.Policy.optionsOn(r.on)
	if err != nil {
		return budget.Plan{}, err
	}
	ps.shard(&o)
	if _, ok := r.on.GPU(); ok && c.Policy.Kernels != libtorchKernels {
		o.Kernels = planned{}
	}
	return budget.Make(budget.Run{
		Model: shape, Options: o, Replicas: c.Policy.Replicas, MicroBatch: c.Train.TokenBudget, Longest: c.Episodes.Limits.Context,
		Engine:    &engine.Options{MaxSequences: c.Policy.Batch, CacheBytes: c.Policy.CacheBytes},
		Rescores:  c.Train.Rescores(),
		Reference: c.Train.NeedsReference(), Device: r.device,
	})
}

// foretell says how much memory the run will need, and refuses one that does not
// fit, with changes that would make it fit.
func (c config) foretell(o output, dir string, ps *processes) (budget.Plan, error) {
	shape, err := model.ReadConfig(dir)
	if err != nil {
		return budget.Plan{}, err
	}
	r, err := c.room(ps)
	if err != nil {
		return budget.Plan{}, err
	}
	p, err := c.memory(shape, r, ps)
	if err != nil && !errors.Is(err, budget.ErrTooLarge) {
		return p, err
	}
	if without := fits(o, p, r.available); err == nil {
		err = without
	}
	if err == nil {
		return p, nil
	}
	var advice []string
	for _, change := range c.reductions() {
		less, failed := change.config.memory(shape, r, ps)
		if failed != nil && !errors.Is(failed, budget.ErrTooLarge) || less.All() >= p.All() {
			continue
		}
		enough := ""
		if failed == nil && less.All() <= r.available {
			enough = ", which fits"
		}
		advice = append(advice, fmt.Sprintf("%s makes it %s%s", change.name, budget.Size(less.All()), enough))
	}
	if len(advice) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(advice, "; "))
	}
	return p, err
}

type reduction struct {
	name   string
	config config
}

// reductions are changes that make a run need less, the ones that cost least first.
func (c config) reductions() (all []reduction) {
	add := func(name string, change func(*config)) {
		next := c
		change(&next)
		all = append(all, reduction{name, next})
	}
	if c.Policy.Replicas > 1 && c.Policy.DeviceBytes == 0 {
		add("policy.replicas=1", func(c *config) { c.Policy.Replicas = 1 })
	}
	if c.Policy.Zero == 1 {
		add("policy.zero=2", func(c *config) { c.Policy.Zero = 2 })
	}
	longest := c.Episodes.Limits.Context
	if c.Train.TokenBudget > longest {
		add(fmt.Sprintf("train.token_budget=%d", longest), func(c *config) { c.Train.TokenBudget = longest })
	}
	if !c.Policy.Recompute {
		add("policy.recompute=true", func(c *config) { c.Policy.Recompute = true })
		add(fmt.Sprintf("both with train.token_budget=%d", longest), func(c *config) {
			c.Policy.Recompute, c.Train.TokenBudget = true, min(longest, c.Train.TokenBudget)
		})
	}
	if c.Policy.workers() > 1 {
		add("policy.workers=1", func(c *config) { c.Policy.Workers = 1 })
	}
	if c.Policy.LoRA == nil {
		add("policy.lora={rank: 16}", func(c *config) { c.Policy.LoRA = &model.LoRA{Rank: 16} })
	}
	if longest > 2048 {
		add(fmt.Sprintf("episodes.limits.context=%d", longest/2), func(c *config) {
			c.Episodes.Limits.Context = longest / 2
			c.Train.TokenBudget = min(c.Train.TokenBudget, longest/2)
		})
	}
	return all
}

// availableMemory is what the kernel would give this process, in bytes: what is free
// of the machine's memory or of the control group's; 0 where neither can be read.
func availableMemory() int64 {
	free := readNumber("/proc/meminfo", "MemAvailable:") << 10
	group := func(folder, limit, used, cache string) {
		if most := readNumber(folder+limit, ""); most > 0 {
			// The kernel gives back the cache of files that nobody looks at.
			free = min(free, most-readNumber(folder+used, "")+readNumber(folder+"memory.stat", cache))
		}
	}
	group("/sys/fs/cgroup/", "memory.max", "memory.current", "inactive_file ")
	group("/sys/fs/cgroup/memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
	return max(free, 0)
}

// readNumber is the number after a prefix of a line of a file, 0 where there is none.
func readNumber(path, prefix string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), prefix); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				n, err := strconv.ParseInt(fields[0], 10, 64)
				if err == nil {
					return n
				}
			}
		}
	}
	return 0
}
