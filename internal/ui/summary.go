package ui

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

// NewTable returns a table in the style of all our output; columns with the
// given numbers (from 1) are aligned right.
func NewTable(w io.Writer, header table.Row, right ...int) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.Style().Options.DrawBorder = false
	t.Style().Options.SeparateColumns = false
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(header)
	var columns []table.ColumnConfig
	for _, n := range right {
		columns = append(columns, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	return t
}

// Summary prints how a run went: its figures over the first and the last steps,
// and totals.
func Summary(w io.Writer, metrics []train.Metrics) {
	if len(metrics) == 0 {
		fmt.Fprintln(w, "no step was completed")
		return
	}
	n := max(1, min(10, len(metrics)/4))
	first, last := metrics[:n], metrics[len(metrics)-n:]
	head := func(m []train.Metrics) string {
		if len(m) == 1 {
			return fmt.Sprintf("step %d", m[0].Step)
		}
		return fmt.Sprintf("steps %d–%d", m[0].Step, m[len(m)-1].Step)
	}
	t := NewTable(w, table.Row{"", head(first), head(last), "all"}, 2, 3, 4)
	row := func(name, format string, scale float64, of func(*train.Metrics) (float64, bool)) {
		cell := func(m []train.Metrics) string {
			v, ok := window(m, of)
			if !ok {
				return "–"
			}
			return fmt.Sprintf(format, v*scale)
		}
		if all := cell(metrics); all != "–" {
			t.AppendRow(table.Row{name, cell(first), cell(last), all})
		}
	}
	row("solve rate", "%.0f%%", 100, solveRate)
	row("valid bugs", "%.0f%%", 100, validRate)
	for _, r := range []rollout.Role{rollout.Injector, rollout.Solver} {
		row(string(r)+" reward", "%+.3f", 1, role(r, func(m *train.RoleMetrics) float64 { return m.RewardMean }))
		row(string(r)+" tokens", "%.0f", 1, role(r, func(m *train.RoleMetrics) float64 { return m.LengthMean }))
		row(string(r)+" turns", "%.1f", 1, role(r, func(m *train.RoleMetrics) float64 { return m.TurnsMean }))
	}
	row("loss", "%.4g", 1, func(m *train.Metrics) (float64, bool) { return optional(m.Loss) })
	row("entropy, nats", "%.3f", 1, func(m *train.Metrics) (float64, bool) { return optional(m.Entropy) })
	row("gradient norm", "%.3g", 1, func(m *train.Metrics) (float64, bool) { return optional(m.GradNorm) })
	row("seconds, play", "%.1f", 1, func(m *train.Metrics) (float64, bool) { return m.Seconds.Play, m.PlayMetrics != nil })
	row("seconds, update", "%.1f", 1, func(m *train.Metrics) (float64, bool) { return m.Seconds.Update, true })
	t.Render()
	for _, l := range totals(metrics) {
		fmt.Fprintln(w, l)
	}
}

// totals are the sums over a run, in words.
func totals(metrics []train.Metrics) []string {
	var episodes, sampled, trained int
	var spent time.Duration
	var largest float64
	refusals, failures, counts := map[string]int{}, map[string]int{}, map[string]float64{}
	for i := range metrics {
		m := &metrics[i]
		spent += stepTime(m)
		trained += m.TrainedTokens
		if m.LogprobGap != nil {
			largest = max(largest, *m.LogprobGap)
		}
		if m.PlayMetrics == nil {
			continue
		}
		sampled += m.SampledTokens
		for _, r := range m.Roles {
			episodes += r.Episodes
		}
		for k, v := range m.Refusals {
			refusals[k] += v
		}
		for k, v := range m.Failures {
			failures[k] += v
		}
		for k, v := range m.Counts {
			counts[k] += v
		}
	}
	var out []string
	line := fmt.Sprintf("%d steps in %s, %s tokens trained on", len(metrics), duration(spent), Thousands(trained))
	if episodes > 0 {
		line += fmt.Sprintf(", %s episodes, %s tokens sampled", Thousands(episodes), Thousands(sampled))
	}
	if n := counts["sandboxes"]; n > 0 {
		line += fmt.Sprintf(", %s sandboxes", Thousands(int(n)))
	}
	out = append(out, line)
	if episodes > 0 {
		out = append(out, fmt.Sprintf("largest |Δlogprob| on fresh data: %.2g", largest))
	}
	if len(refusals) > 0 {
		out = append(out, "bugs refused by: "+ranked(refusals))
	}
	if len(failures) > 0 {
		out = append(out, "episodes lost to: "+ranked(failures))
	}
	return out
}

// ranked lists counts, the largest first.
func ranked(counts map[string]int) string {
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%s %d", k, counts[k])
	}
	return strings.Join(keys, ", ")
}
