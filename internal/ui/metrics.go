// Package ui renders runs for people: the live view of a training run, its
// summary and curves, and transcripts of episodes.
package ui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/ssr-go/ssr/internal/chart"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

// ReadMetrics reads a run's metrics.jsonl. A last line that is still being
// written is left out.
func ReadMetrics(path string) ([]train.Metrics, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	var all []train.Metrics
	for n, line := range bytes.Split(data, []byte("\n")) {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var m train.Metrics
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n+1, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// curve is one line of a panel: a value of each step, absent where ok is false.
type curve struct {
	name string
	of   func(m *train.Metrics) (v float64, ok bool)
}

func optional(v *float64) (float64, bool) {
	if v == nil {
		return 0, false
	}
	return *v, true
}

func role(r rollout.Role, f func(*train.RoleMetrics) float64) func(*train.Metrics) (float64, bool) {
	return func(m *train.Metrics) (float64, bool) {
		if m.PlayMetrics == nil || m.Roles[r] == nil || m.Roles[r].Episodes == 0 {
			return 0, false
		}
		return f(m.Roles[r]), true
	}
}

func objective(name string) func(*train.Metrics) (float64, bool) {
	return func(m *train.Metrics) (float64, bool) { v, ok := m.Objective[name]; return v, ok }
}

func solveRate(m *train.Metrics) (float64, bool) {
	if m.PlayMetrics == nil {
		return 0, false
	}
	return optional(m.SolveRate)
}

func validRate(m *train.Metrics) (float64, bool) {
	if m.PlayMetrics == nil {
		return 0, false
	}
	return optional(m.ValidRate)
}

// byRole is a curve for each role that plays, in the order of their names.
func byRole(metrics []train.Metrics, f func(*train.RoleMetrics) float64) (curves []curve) {
	roles := map[rollout.Role]bool{}
	for _, m := range metrics {
		if m.PlayMetrics != nil {
			for r := range m.Roles {
				roles[r] = true
			}
		}
	}
	for _, r := range slices.Sorted(maps.Keys(roles)) {
		curves = append(curves, curve{string(r), role(r, f)})
	}
	return curves
}

// Curves draws a run's metrics over its steps. Panels without a value are left out.
func Curves(w io.Writer, title string, metrics []train.Metrics) error {
	panels := []struct {
		panel  chart.Panel
		curves []curve
	}{
		{chart.Panel{Title: "Rates", Percent: true, Min: 0, Max: 1}, []curve{{"solved", solveRate}, {"valid bugs", validRate}}},
		{chart.Panel{Title: "Reward"}, byRole(metrics, func(r *train.RoleMetrics) float64 { return r.RewardMean })},
		{chart.Panel{Title: "Episode length, tokens"}, byRole(metrics, func(r *train.RoleMetrics) float64 { return r.LengthMean })},
		{chart.Panel{Title: "Entropy, nats"}, []curve{{"", func(m *train.Metrics) (float64, bool) { return optional(m.Entropy) }}}},
		{chart.Panel{Title: "Loss"}, []curve{{"", func(m *train.Metrics) (float64, bool) { return optional(m.Loss) }}}},
		{chart.Panel{Title: "Gradient norm"}, []curve{{"", func(m *train.Metrics) (float64, bool) { return optional(m.GradNorm) }}}},
		{chart.Panel{Title: "Clipped tokens", Percent: true}, []curve{{"", objective("clip_fraction")}}},
		{chart.Panel{Title: "Largest |Δlogprob| on fresh data"}, []curve{{"", func(m *train.Metrics) (float64, bool) { return optional(m.LogprobGap) }}}},
		{chart.Panel{Title: "Seconds a step"}, []curve{
			{"play", func(m *train.Metrics) (float64, bool) { return m.Seconds.Play, true }},
			{"update", func(m *train.Metrics) (float64, bool) { return m.Seconds.Update, true }},
		}},
	}
	var drawn []chart.Panel
	for _, p := range panels {
		empty := true
		for _, c := range p.curves {
			s := chart.Series{Name: c.name, Points: len(metrics) <= 30}
			for i := range metrics {
				v, ok := c.of(&metrics[i])
				if !ok {
					v = math.NaN()
				}
				empty = empty && !ok
				s.X, s.Y = append(s.X, float64(metrics[i].Step)), append(s.Y, v)
			}
			p.panel.Series = append(p.panel.Series, s)
		}
		if p.panel.XLabel = "step"; !empty {
			drawn = append(drawn, p.panel)
		}
	}
	return chart.SVG(w, drawn, chart.Options{Title: title, Columns: 3, Width: 400, Height: 240})
}

// window is the mean over the steps in which a figure exists.
func window(metrics []train.Metrics, of func(*train.Metrics) (float64, bool)) (float64, bool) {
	var sum float64
	n := 0
	for i := range metrics {
		if v, ok := of(&metrics[i]); ok {
			sum += v
			n++
		}
	}
	return sum / float64(max(1, n)), n > 0
}

func duration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// Thousands writes an integer with separators: 12,345.
func Thousands(n int) string {
	s := fmt.Sprint(max(n, -n))
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if n < 0 {
		return "-" + s
	}
	return s
}

func percent(v float64, ok bool) string {
	if !ok {
		return "–"
	}
	return fmt.Sprintf("%.0f%%", 100*v)
}
