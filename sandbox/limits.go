package sandbox

import "time"

// DefaultLimits are what a zero field of Limits means.
var DefaultLimits = Limits{
	Lifetime:  30 * time.Minute,
	Command:   120 * time.Second,
	CPU:       240 * time.Second,
	Memory:    2 << 30,
	Processes: 256,
	FileSize:  256 << 20,
	Disk:      512 << 20,
	OpenFiles: 1024,
	Output:    8 << 20,
}

// WithDefaults replaces every field that is not positive by DefaultLimits'.
func (l Limits) WithDefaults() Limits {
	d := DefaultLimits
	return Limits{
		Lifetime:  positive(l.Lifetime, d.Lifetime),
		Command:   positive(l.Command, d.Command),
		CPU:       positive(l.CPU, d.CPU),
		Memory:    positive(l.Memory, d.Memory),
		Processes: positive(l.Processes, d.Processes),
		FileSize:  positive(l.FileSize, d.FileSize),
		Disk:      positive(l.Disk, d.Disk),
		OpenFiles: positive(l.OpenFiles, d.OpenFiles),
		Output:    positive(l.Output, d.Output),
	}
}

func positive[T int | int64 | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}
