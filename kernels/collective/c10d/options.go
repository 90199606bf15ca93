package c10d

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Options say which process of which group this is.
type Options struct {
	// Rank is this process's number in 0 … World-1.
	Rank, World int
	// Host and Port are those of the group's store. Rank 0 holds it unless External
	// says that it is there already.
	Host     string
	Port     int
	External bool
	// Attempt tells groups apart that use one external store after each other.
	Attempt string
	// Interface is the network interface of what the processes send each other; ""
	// is the one that this machine's name resolves to.
	Interface string
	// Timeout bounds the meeting of the processes, and how long an operation waits for
	// a process that is late (default 30 min, as torch.distributed has it).
	Timeout time.Duration
}

// grace is how long a failed group waits for its members to say so. One that has not
// answered by then is dead, stopped or out of reach.
const grace = 5 * time.Second

func (o Options) check() error {
	switch {
	case o.World < 1 || o.Rank < 0 || o.Rank >= o.World:
		return fmt.Errorf("rank %d of %d processes; ranks are numbered from 0", o.Rank, o.World)
	case o.Host == "" || o.Port < 1 || o.Port > 65535:
		return fmt.Errorf("%q and port %d are not an address where processes could meet", o.Host, o.Port)
	}
	return nil
}

// lost says whose fault it is that the store failed.
func (o Options) lost(err error) error {
	holder := "rank 0, which holds the store"
	if o.External {
		holder = "the store"
	}
	return fmt.Errorf("%s at %s:%d, does not answer: %w", holder, o.Host, o.Port, err)
}

// Launch is how a launcher started this process.
type Launch struct {
	Options
	// LocalRank is the process's number among the LocalWorld ones on its machine.
	LocalRank, LocalWorld int
}

// FromEnvironment reads the variables that torchrun sets for its workers, and the
// PyTorchJob of Kubernetes for its pods: WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT,
// LOCAL_RANK, LOCAL_WORLD_SIZE, and torch's own GLOO_SOCKET_IFNAME. It returns nil
// where WORLD_SIZE is not set or 1: a process alone.
func FromEnvironment(getenv func(string) string) (*Launch, error) {
	if s := getenv("WORLD_SIZE"); s == "" || s == "1" {
		return nil, nil
	}
	var errs []error
	number := func(name, absent string) int {
		s := getenv(name)
		if s == "" {
			s = absent
		}
		n, err := strconv.Atoi(s)
		switch {
		case s == "":
			errs = append(errs, fmt.Errorf("WORLD_SIZE is set, but not %s", name))
		case err != nil:
			errs = append(errs, fmt.Errorf("%s is %q, which is not a number", name, s))
		}
		return n
	}
	l := &Launch{Options: Options{
		World: number("WORLD_SIZE", ""), Rank: number("RANK", ""),
		Host: getenv("MASTER_ADDR"), Port: number("MASTER_PORT", ""),
		Interface: getenv("GLOO_SOCKET_IFNAME"),
		// torchrun's agent holds a store at that address for all its attempts.
		External: getenv("TORCHELASTIC_USE_AGENT_STORE") == "True", Attempt: getenv("TORCHELASTIC_RESTART_COUNT"),
	}, LocalRank: number("LOCAL_RANK", "0"), LocalWorld: number("LOCAL_WORLD_SIZE", "1")}
	if l.Host == "" {
		errs = append(errs, errors.New("WORLD_SIZE is set, but not MASTER_ADDR"))
	}
	if len(errs) == 0 {
		if err := l.check(); err != nil {
			errs = append(errs, err)
		}
		if l.LocalWorld < 1 || l.LocalRank < 0 || l.LocalRank >= l.LocalWorld {
			errs = append(errs, fmt.Errorf("LOCAL_RANK is %d of LOCAL_WORLD_SIZE %d", l.LocalRank, l.LocalWorld))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("c10d: the launcher's environment: %w", err)
	}
	return l, nil
}
