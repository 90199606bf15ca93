package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
)

// need is what a run's tensors take at most, in bytes.
type need struct {
	model.Footprint
	// Sampling is the cache and the activations of generation, Reference a frozen
	// copy of the policy.
	Sampling, Reference int64
}

func (n need) total() int64 { return n.Total() + n.Sampling + n.Reference }

func (n need) String() string {
	text := fmt.Sprintf("%s at most: weights %s, gradients %s, optimizer %s, activations %s",
		mebibytes(n.total()), mebibytes(n.Weights), mebibytes(n.Gradients), mebibytes(n.Optimizer), mebibytes(n.Activations))
	if n.Sampling > 0 {
		text += ", sampling " + mebibytes(n.Sampling)
	}
	if n.Reference > 0 {
		text += ", reference " + mebibytes(n.Reference)
	}
	return text
}

// fits reports the need and refuses it where there is less; an unknown amount, 0, is
// taken to be enough.
func (n need) fits(o output, available int64) error {
	fmt.Fprintf(o.err, "memory: %s; %s are free\n", n, mebibytes(available))
	if available == 0 || n.total() <= available {
		return nil
	}
	return fmt.Errorf("the run needs %s of memory and %s are free", mebibytes(n.total()), mebibytes(available))
}

func mebibytes(n int64) string { return strconv.FormatInt((n+1<<20-1)>>20, 10) + " MiB" }

// workers is how many CPU workers a setting of so many means.
func workers(n int) int {
	if n > 0 {
		return n
	}
	return runtime.GOMAXPROCS(0)
}

// full are the lengths of sequences that fill a micro-batch of a token budget as
// expensively as can be: with the longest ones.
func full(budget, longest int) []int {
	lengths := slices.Repeat([]int{longest}, budget/longest)
	if rest := budget % longest; rest > 0 && budget > longest {
		lengths = append(lengths, rest)
	}
	if len(lengths) == 0 {
		lengths = []int{longest} // a sequence beyond the budget is a micro-batch of its own
	}
	return lengths
}

// memory foretells what the run needs whose policy has this shape.
func (c config) memory(shape model.Config) (n need, err error) {
	o, err := c.Policy.options()
	if err != nil {
		return n, err
	}
	w := workers(c.Policy.Workers)
	if n.Footprint, err = model.TrainingMemory(shape, o, w, full(c.Train.TokenBudget, c.Episodes.Limits.Context)); err != nil {
		return n, err
	}
	n.Sampling = engine.Memory(shape, o, w, engine.Options{MaxSequences: c.Policy.Batch, CacheBytes: c.Policy.CacheBytes})
	if c.Train.Loss.KLCoef != 0 {
		frozen, err := model.TrainingMemory(shape, model.Options{}, w, []int{1})
		if err != nil {
			return n, err
		}
		n.Reference = frozen.Weights + int64(w)*model.SamplingMemory(shape, model.Options{}, c.Episodes.Limits.Context, 0, 16)
	}
	return n, nil
}

// foretell says how much memory the run will need, and refuses one that does not
// fit, with changes that would make it fit.
func (c config) foretell(o output, dir string) error {
	shape, err := model.ReadConfig(dir)
	if err != nil {
		return err
	}
	n, err := c.memory(shape)
	if err != nil {
		return err
	}
	available := availableMemory()
	err = n.fits(o, available)
	if err == nil {
		return nil
	}
	var advice []string
	for _, change := range c.reductions() {
		if less, failed := change.config.memory(shape); failed == nil && less.total() < n.total() {
			fits := ""
			if less.total() <= available {
				fits = ", which fits"
			}
			advice = append(advice, fmt.Sprintf("%s makes it %s%s", change.name, mebibytes(less.total()), fits))
		}
	}
	if len(advice) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(advice, "; "))
	}
	return err
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
	if workers(c.Policy.Workers) > 1 {
		add("policy.workers=1", func(c *config) { c.Policy.Workers = 1 })
	}
	if c.Policy.LoRA == nil && c.Policy.DType != "bfloat16" {
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
