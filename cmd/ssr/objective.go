package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"go.yaml.in/yaml/v4"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/internal/chart"
	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/rl"
)

type objectiveCmd struct {
	List    objectiveListCmd    `cmd:"" help:"List the objectives."`
	Show    objectiveShowCmd    `cmd:"" help:"Print an objective's default settings."`
	Eval    objectiveEvalCmd    `cmd:"" help:"Evaluate an objective on a recorded batch, as JSON."`
	Compare objectiveCompareCmd `cmd:"" help:"Compare objectives on a recorded batch."`
}

type objectiveListCmd struct{ jsonFlag }

// listed is an entry of a registry.
type listed struct {
	Name  string `json:"name"`
	About string `json:"about"`
}

func printList(o output, asJSON bool, all []listed) error {
	if asJSON {
		return printJSON(o.out, all)
	}
	for _, l := range all {
		if err := check(fmt.Fprintf(o.out, "%-21s %s\n", l.Name, l.About)); err != nil {
			return err
		}
	}
	return nil
}

func (c *objectiveListCmd) Run(o output) error {
	var all []listed
	for _, name := range rl.Names() {
		f, err := rl.Lookup(name)
		if err != nil {
			return err
		}
		all = append(all, listed{name, f.About})
	}
	return printList(o, c.JSON, all)
}

type objectiveShowCmd struct {
	Name string `arg:"" help:"An objective of ssr objective list."`
}

func (c *objectiveShowCmd) Run(o output) error {
	f, err := rl.Lookup(c.Name)
	if err != nil {
		return err
	}
	return printSettings(o, c.Name, f.About, f.Defaults)
}

// printSettings prints settings as the configuration takes them.
func printSettings(o output, name, about string, settings any) error {
	data, err := yaml.Dump(settings)
	if err != nil {
		return err
	}
	return check(fmt.Fprintf(o.out, "# %s: %s\n%s", name, about, data))
}

// batchFlags say what is evaluated.
type batchFlags struct {
	Batch     string   `required:"" type:"existingfile" help:"The batch: JSON with lengths, logprobs and more; see docs/objectives.md."`
	Advantage string   `default:"group_mean" help:"Estimator of advantages, where the batch has rewards instead."`
	Set       []string `help:"Override a setting." placeholder:"KEY=VALUE" sep:"none"`
}

func (f batchFlags) read() (rl.Batch, error) {
	estimator, err := rl.NewEstimator(f.Advantage)
	if err != nil {
		return rl.Batch{}, err
	}
	recorded, err := readRecorded(f.Batch)
	if err != nil {
		return rl.Batch{}, err
	}
	return recorded.Batch(estimator)
}

func readRecorded(path string) (*rl.Recorded, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := rl.ParseRecorded(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// overlay lays key=value pairs over settings.
func overlay(settings any, pairs []string) error {
	for _, p := range pairs {
		d, err := override(p)
		if err == nil {
			err = loadStrict(d, settings)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// evaluated is an objective's value on a batch.
type evaluated struct {
	Objective string      `json:"objective"`
	Settings  rl.Settings `json:"settings"`
	Loss      float64     `json:"loss"`
	// GradientNorm is that of Gradient; EffectiveSampleSize a share of the trained tokens.
	GradientNorm        float64            `json:"gradient_norm"`
	EffectiveSampleSize float64            `json:"effective_sample_size"`
	Metrics             map[string]float64 `json:"metrics"`
	Gradient            []float64          `json:"gradient"`
}

// evaluate runs the objective that label names, with pairs over its defaults.
func evaluate(label, name string, pairs []string, b rl.Batch) (evaluated, error) {
	s, err := rl.Defaults(name)
	if err != nil {
		return evaluated{}, err
	}
	if err := overlay(&s, pairs); err != nil {
		return evaluated{}, err
	}
	o, err := rl.New(name, s)
	if err != nil {
		return evaluated{}, err
	}
	r, err := o.Evaluate(b)
	if err != nil {
		return evaluated{}, fmt.Errorf("%s: %w", label, err)
	}
	var ss float64
	for _, g := range r.Grad {
		ss += g * g
	}
	return evaluated{label, s, r.Loss, math.Sqrt(ss), b.EffectiveSampleSize(), r.Metrics, r.Grad}, nil
}

type objectiveEvalCmd struct {
	Name string `required:"" help:"An objective of ssr objective list."`
	batchFlags
}

func (c *objectiveEvalCmd) Run(o output) error {
	b, err := c.read()
	if err != nil {
		return err
	}
	e, err := evaluate(c.Name, c.Name, c.Set, b)
	if err != nil {
		return err
	}
	return printJSON(o.out, e)
}

type objectiveCompareCmd struct {
	Names []string `arg:"" help:"Objectives, each with settings of its own where wanted: ppo ppo:clip_high=0.3,dual_clip=3."`
	Out   string   `type:"path" placeholder:"SVG" help:"Draw each token's gradient over its ratio."`
	batchFlags
	jsonFlag
}

func (c *objectiveCompareCmd) Run(o output) error {
	b, err := c.read()
	if err != nil {
		return err
	}
	var all []evaluated
	for _, label := range c.Names {
		name, own, has := strings.Cut(label, ":")
		pairs := slices.Clone(c.Set)
		if has {
			pairs = append(pairs, strings.Split(own, ",")...)
		}
		e, err := evaluate(label, name, pairs, b)
		if err != nil {
			return err
		}
		all = append(all, e)
	}
	if c.Out != "" {
		err := atomicfile.Write(c.Out, func(w io.Writer) error { return drawGradients(w, b, all) })
		if err != nil {
			return err
		}
	}
	if c.JSON {
		return printJSON(o.out, all)
	}
	header, right := table.Row{"objective", "loss", "gradient norm", "no gradient"}, []int{2, 3, 4}
	var names, shared []string
	for _, e := range all {
		for name := range e.Metrics {
			if strings.HasPrefix(name, "ratio_") || name == "approx_kl" || name == "logprob_gap_max" {
				shared = append(shared, fmt.Sprintf("%s %.4g", name, e.Metrics[name])) // of the batch, not the objective
			} else {
				names = append(names, name)
			}
		}
	}
	slices.Sort(shared)
	shared = slices.Compact(shared)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		right = append(right, len(header)+1)
		header = append(header, name)
	}
	t := ui.NewTable(o.out, header, right...)
	for _, e := range all {
		none := 0
		for i, trained := range b.Mask {
			if trained && e.Gradient[i] == 0 {
				none++
			}
		}
		row := table.Row{e.Objective, fmt.Sprintf("%.6g", e.Loss), fmt.Sprintf("%.6g", e.GradientNorm),
			fmt.Sprintf("%.1f%%", 100*float64(none)/float64(max(1, b.Totals.Tokens)))}
		for _, name := range header[len(row):] {
			cell := ""
			if v, ok := e.Metrics[name.(string)]; ok {
				cell = fmt.Sprintf("%.4g", v)
			}
			row = append(row, cell)
		}
		t.AppendRow(row)
	}
	t.Render()
	shared = append([]string{fmt.Sprintf("%d trained tokens, effective sample size %.1f%%", b.Totals.Tokens, 100*b.EffectiveSampleSize())}, shared...)
	if err := check(fmt.Fprintln(o.out, strings.Join(shared, ", "))); err != nil {
		return err
	}
	if c.Out != "" {
		return check(fmt.Fprintln(o.out, c.Out))
	}
	return nil
}

// drawGradients draws a panel for the tokens of positive advantages and one for
// those of negative ones: each token's gradient over its ratio to the sampler.
func drawGradients(w io.Writer, b rl.Batch, all []evaluated) error {
	panel := func(title string, want float64) chart.Panel {
		var tokens []int
		ratio := func(i int) float64 {
			if b.RolloutLogprobs == nil {
				return 1
			}
			return math.Exp(b.Logprobs[i] - b.RolloutLogprobs[i])
		}
		for i, trained := range b.Mask {
			if trained && b.Advantages != nil && b.Advantages[i]*want > 0 {
				tokens = append(tokens, i)
			}
		}
		slices.SortStableFunc(tokens, func(i, j int) int { return cmp.Compare(ratio(i), ratio(j)) })
		p := chart.Panel{Title: title, XLabel: "ratio to the sampler", LogX: true}
		for _, e := range all {
			s := chart.Series{Name: e.Objective, Scattered: true}
			for k := range min(len(tokens), mostMarks) { // evenly by rank, the extremes among them
				i := tokens[k*(len(tokens)-1)/max(1, min(len(tokens), mostMarks)-1)]
				s.X, s.Y = append(s.X, ratio(i)), append(s.Y, e.Gradient[i])
			}
			p.Series = append(p.Series, s)
		}
		return p
	}
	return chart.SVG(w, []chart.Panel{panel("gradient, advantage > 0", 1), panel("gradient, advantage < 0", -1)},
		chart.Options{Title: "objectives on one batch", Width: 560, Height: 360})
}

// mostMarks bounds what a picture shows of an objective.
const mostMarks = 1000

type advantageCmd struct {
	List advantageListCmd `cmd:"" help:"List the estimators."`
	Show advantageShowCmd `cmd:"" help:"Print an estimator's default settings."`
	Eval advantageEvalCmd `cmd:"" help:"Estimate advantages from recorded rewards, as JSON."`
}

type advantageListCmd struct{ jsonFlag }

func (c *advantageListCmd) Run(o output) error {
	var all []listed
	for _, name := range rl.AdvantageNames() {
		p, err := rl.LookupAdvantage(name)
		if err != nil {
			return err
		}
		all = append(all, listed{name, p.About})
	}
	return printList(o, c.JSON, all)
}

type advantageShowCmd struct {
	Name string `arg:"" help:"An estimator of ssr advantage list."`
}

func (c *advantageShowCmd) Run(o output) error {
	p, err := rl.LookupAdvantage(c.Name)
	if err != nil {
		return err
	}
	return printSettings(o, c.Name, p.About, p.Defaults)
}

type advantageEvalCmd struct {
	Name  string   `required:"" help:"An estimator of ssr advantage list."`
	Batch string   `required:"" type:"existingfile" help:"The batch: JSON with lengths, rewards and groups; see docs/objectives.md."`
	Set   []string `help:"Override a setting." placeholder:"KEY=VALUE" sep:"none"`
}

func (c *advantageEvalCmd) Run(o output) error {
	p, err := rl.LookupAdvantage(c.Name)
	if err != nil {
		return err
	}
	if err := overlay(&p.Defaults, c.Set); err != nil {
		return err
	}
	e, err := p.Defaults.Estimator()
	if err != nil {
		return err
	}
	recorded, err := readRecorded(c.Batch)
	if err != nil {
		return err
	}
	groups, at, err := recorded.Episodes()
	if err != nil {
		return fmt.Errorf("%s: %w", c.Batch, err)
	}
	advantages := make([]float64, len(recorded.Rewards))
	for g, estimated := range e.Estimate(groups) {
		for k, a := range estimated {
			advantages[at[g][k]] = a
		}
	}
	return printJSON(o.out, map[string]any{"advantage": c.Name, "settings": p.Defaults, "advantages": advantages})
}
