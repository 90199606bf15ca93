package c10d

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// report is what a member of a group that is over says of itself.
type report struct {
	// Begun is how many operations it has begun, and Late says that it waited too long
	// for the others in the last.
	Begun int64 `json:"begun"`
	Late  bool  `json:"late"`
	// Why it gave up; "" where it was for another's sake.
	Why string `json:"why"`
}

// downKey is there as soon as a member has given up.
const downKey = "down"

var (
	errLate   = errors.New("timed out")
	errOthers = errors.New("another process gave up")
)

// listen answers, whatever the process is busy with, when another member gives up.
func (g *Group) listen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.over:
			return
		case <-time.After(time.Second):
		}
		down, err := g.store.has(ctx, downKey)
		if ctx.Err() == nil && (down || err != nil) {
			g.giveUp("", errOthers, false)
			return
		}
	}
}

// giveUp ends the group, once, and returns why: err where it is this process's own
// failure, else what the members' reports say of it.
func (g *Group) giveUp(what string, err error, own bool) error {
	g.once.Do(func() {
		cause := g.rollCall(err, own)
		if own {
			cause = err
		}
		if what != "" {
			cause = fmt.Errorf("%s: %w", what, cause)
		}
		g.err = fmt.Errorf("c10d: rank %d of %d: %w", g.o.Rank, g.o.World, cause)
		close(g.over)
	})
	return g.err
}

// rollCall tells the other members, hears them, and says whose fault it is.
func (g *Group) rollCall(err error, own bool) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 2*grace, errLate)
	defer cancel()
	mine := report{Begun: g.begun.Load(), Late: errors.Is(err, errLate)}
	if own {
		mine.Why = err.Error()
	}
	reports, storeErr := g.hear(ctx, mine)
	if storeErr != nil {
		return fmt.Errorf("%w; %w", g.o.lost(storeErr), err)
	}
	var heard, silent, behind []int
	var gaveUp error
	late := int64(0) // the operation that a member waited too long in
	for r, theirs := range reports {
		if theirs == nil {
			silent = append(silent, r)
			continue
		}
		heard = append(heard, r)
		if theirs.Why != "" && r != g.o.Rank && gaveUp == nil {
			gaveUp = fmt.Errorf("rank %d gave up: %s", r, theirs.Why)
		}
		if theirs.Late {
			late = max(late, theirs.Begun)
		}
	}
	for _, r := range heard {
		if reports[r].Begun < late {
			behind = append(behind, r)
		}
	}
	g.leave(ctx, heard)
	switch {
	case gaveUp != nil:
		return gaveUp
	case len(silent) > 0:
		return fmt.Errorf("%s not answer: killed, stopped or out of reach; %w", named(silent, "does", "do"), err)
	case len(behind) > 0:
		return fmt.Errorf("%s not come within %v", named(behind, "did", "did"), g.o.Timeout)
	}
	return err
}

// hear gives this member's report and gathers those of all; who has none after a
// while has nil. The error is the store's.
func (g *Group) hear(ctx context.Context, mine report) ([]*report, error) {
	data, err := json.Marshal(mine)
	if err != nil {
		return nil, err
	}
	if err := g.store.set(ctx, member("report", g.o.Rank), string(data)); err != nil {
		return nil, err
	}
	if err := g.store.set(ctx, downKey, "1"); err != nil {
		return nil, err
	}
	reports, missing := make([]*report, g.o.World), g.o.World
	end := time.Now().Add(grace)
	for pause := 5 * time.Millisecond; missing > 0 && time.Now().Before(end); pause = min(2*pause, 200*time.Millisecond) {
		time.Sleep(pause)
		for r := range reports {
			if reports[r] != nil {
				continue
			}
			there, err := g.store.has(ctx, member("report", r))
			if err != nil {
				return nil, err
			}
			if !there {
				continue
			}
			text, err := g.store.get(ctx, member("report", r))
			if err == nil {
				err = json.Unmarshal([]byte(text), &reports[r])
			}
			if err != nil {
				return nil, fmt.Errorf("report of rank %d: %w", r, err)
			}
			missing--
		}
	}
	return reports, nil
}
