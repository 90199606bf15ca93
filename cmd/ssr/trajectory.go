package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/term"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/rl/train"
)

type trajectoryCmd struct {
	List trajectoryListCmd `cmd:"" help:"List the episodes of a run."`
	Show trajectoryShowCmd `cmd:"" help:"Show one episode as a transcript."`
}

type trajectoryListCmd struct {
	Dir  string `arg:"" name:"run" type:"existingdir" help:"The run's folder."`
	Step int    `help:"Only this step; 0 for all."`
	Role string `enum:"injector,solver,all" default:"all" help:"Only this role: injector or solver."`
	jsonFlag
}

// episodeLine is one episode of a list.
type episodeLine struct {
	ID      string  `json:"id"`
	Step    int     `json:"step"`
	Role    string  `json:"role"`
	Status  string  `json:"status"`
	Outcome string  `json:"outcome"`
	Reward  float64 `json:"reward"`
	Turns   int     `json:"turns"`
	Tokens  int     `json:"tokens"`
}

func (c *trajectoryListCmd) Run(o output) error {
	lines := []episodeLine{}
	err := train.Trajectories(c.Dir, func(step int, f train.Finished) error {
		for _, t := range f.Group.Trajectories {
			if (c.Step == 0 || c.Step == step) && (c.Role == "all" || c.Role == string(t.Role)) {
				lines = append(lines, episodeLine{t.ID, step, string(t.Role), string(t.Status), t.Outcome, t.Reward, len(t.Turns), len(t.Tokens)})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, lines)
	}
	t := ui.NewTable(o.out, table.Row{"episode", "step", "role", "status", "outcome", "reward", "turns", "tokens"}, 2, 6, 7, 8)
	for _, l := range lines {
		t.AppendRow(table.Row{l.ID, l.Step, l.Role, l.Status, l.Outcome, fmt.Sprintf("%+.3f", l.Reward), l.Turns, l.Tokens})
	}
	t.Render()
	return check(fmt.Fprintf(o.out, "%d episodes\n", len(lines)))
}

type trajectoryShowCmd struct {
	Dir string `arg:"" name:"run" type:"existingdir" help:"The run's folder."`
	ID  string `arg:"" help:"The episode, as listed by ssr trajectory list."`
	jsonFlag
}

func (c *trajectoryShowCmd) Run(o output) error {
	t, err := train.FindTrajectory(c.Dir, c.ID)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w; ssr trajectory list %s shows what there is", err, c.Dir)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, t)
	}
	return ui.Transcript(o.out, t, term.IsTerminal(int(o.out.Fd())))
}

type runCmd struct {
	Summary runSummaryCmd `cmd:"" help:"Print how a run went."`
	Curves  runCurvesCmd  `cmd:"" help:"Draw a run's curves as SVG."`
}

type runSummaryCmd struct {
	Dir string `arg:"" type:"existingdir" help:"The run's folder."`
	jsonFlag
}

func (c *runSummaryCmd) Run(o output) error {
	metrics, err := ui.ReadMetrics(filepath.Join(c.Dir, "metrics.jsonl"))
	if err != nil {
		return fmt.Errorf("%s is not a run's folder: %w", c.Dir, err)
	}
	if c.JSON {
		return printJSON(o.out, metrics)
	}
	ui.Summary(o.out, metrics)
	return nil
}

type runCurvesCmd struct {
	Dir string `arg:"" type:"existingdir" help:"The run's folder."`
	Out string `help:"The picture; RUN/curves.svg by default."`
}

func (c *runCurvesCmd) Run(o output) error {
	if c.Out == "" {
		c.Out = filepath.Join(c.Dir, "curves.svg")
	}
	metrics, err := ui.ReadMetrics(filepath.Join(c.Dir, "metrics.jsonl"))
	if err != nil {
		return fmt.Errorf("%s is not a run's folder: %w", c.Dir, err)
	}
	if err := drawCurves(c.Out, filepath.Base(c.Dir), metrics); err != nil {
		return err
	}
	return check(fmt.Fprintln(o.out, c.Out))
}

func drawCurves(path, title string, metrics []train.Metrics) error {
	return atomicfile.Write(path, func(w io.Writer) error { return ui.Curves(w, title, metrics) })
}

// strictJSON decodes one JSON value, refusing unknown fields and what follows it.
func strictJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("text after the JSON value")
	}
	return nil
}
