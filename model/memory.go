package model

import (
	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/torch"
)

// Footprint is the most memory that a policy's tensors hold at a time, in bytes.
type Footprint struct {
	Weights     int64 `json:"weights"`
	Gradients   int64 `json:"gradients"`
	Optimizer   int64 `json:"optimizer"`
	Activations int64 `json:"activations"`
	// Reserved is what arenas ask for beside Activations and never touch, which costs a
	// CPU nothing.
	Reserved int64 `json:"reserved"`
}

// Total is the sum of what is touched.
func (f Footprint) Total() int64 { return f.Weights + f.Gradients + f.Optimizer + f.Activations }

// TrainingMemory foretells the footprint of a policy of this shape that is trained,
// by so many workers, on micro-batches of sequences of these lengths. It follows
// the forward and the backward pass tensor by tensor; nothing is allocated.
func TrainingMemory(c Config, o Options, workers int, lengths []int) (f Footprint, err error) {
	if err := c.Validate(); err != nil {
		return f, err
	}
	if err := o.validate(c); err != nil {
		return f, err
	}
	size := int64(o.size())
	params, total := layout(c)
	weights := total
	shapes := newShapes(c)
	trained, live := o.trained(c, params, total)
	packed, half := 0, 0
	if dtype, length := o.packing(torch.Float32); length != nil {
		for _, l := range shapes.linears {
			packed += length(l[1], l[0])
		}
		if dtype == torch.BFloat16 {
			packed, half = 0, packed
		}
	}
	weights += packed
	if o.LoRA != nil {
		weights += live
		for _, p := range o.LoRA.targets(c) {
			base := (c.Layers - o.FreezeLayers) * (p.hi - p.lo) * p.in
			if o.rounds() {
				half += base
			} else {
				weights += base
			}
		}
	}
	kept := 2
	if o.roundsTrained() {
		kept++
	}
	if o.EMA > 0 {
		kept++
	}
	if o.Device != torch.CPU {
		workers = 1
		weights += c.MaxPositions * c.HeadDim // of cosines and sines
	}
	lo, hi := o.Shard.bounds(live)
	gradients := 0
	for _, n := range slotLengths(o.units(trained, live)) {
		gradients += workers * n
	}
	if o.ShardGradient {
		gradients += hi - lo
	}
	f = Footprint{Weights: size*int64(weights) + 2*int64(half), Gradients: size * int64(gradients), Optimizer: size * int64(kept*(hi-lo))}
	book := func(m *meter) {
		used, reserved := m.need()
		f.Activations += used
		f.Reserved += reserved
	}
	for _, dealt := range o.deal(workers, lengths) {
		m := newMeter(c, o)
		m.train(dealt)
		book(m)
		if o.LoRA != nil { // the adapters are merged one matrix at a time
			m := newMeter(c, o)
			m.Take(max(c.Intermediate, c.Hidden, c.Heads*c.HeadDim) * o.LoRA.Rank)
			book(m)
		}
	}
	f.Activations += o.beside(c, o.segmentRows(lengths), 4)
	return f, nil
}

// deal gives workers segments of sequences of these lengths, as a packed batch is.
func (o Options) deal(workers int, lengths []int) [][]segment {
	offsets := make([]int, len(lengths)+1)
	for i, n := range lengths {
		offsets[i+1] = offsets[i] + n
	}
	return segments(make([]int32, offsets[len(lengths)]), offsets, workers, o.segmentTokens())
}

// segmentRows is the most tokens of a segment of such sequences.
func (o Options) segmentRows(lengths []int) int {
	rows, all := o.segmentTokens(), 0
	for _, n := range lengths {
		rows, all = max(rows, n), all+n
	}
	return min(rows, all)
}

// ScoringMemory foretells the activations of Logprobs of sequences of these lengths, on
// all workers, and what is reserved beside them as Footprint has it.
func ScoringMemory(c Config, o Options, workers int, lengths []int) (bytes, reserved int64) {
	if o.Device != torch.CPU {
		workers = 1
	}
	for _, dealt := range o.deal(workers, lengths) {
		m := newMeter(c, o)
		for _, seg := range dealt {
			m.score(seg)
		}
		used, beside := m.need()
		bytes, reserved = bytes+used, reserved+beside
	}
	return bytes + o.beside(c, o.segmentRows(lengths), 4), reserved
}

// beside estimates the most bytes that libtorch takes beside the tensors of a policy on
// a device, in an operation over so many rows: copies of its operands, or of a chunk of
// the logits, of the attention's scores, or of what the optimizer updates.
func (o Options) beside(c Config, rows, logits int) int64 {
	if o.Device == torch.CPU {
		return 0
	}
	elements := max(copies(c, rows), logits*max(deviceElements, headRows*c.VocabSize), 4*torch.Scores, 4*torch.Updated)
	return int64(elements) * int64(o.size())
}

// size is the bytes of an element that is computed with.
func (o Options) size() int {
	if o.DType == torch.Float64 {
		return 8
	}
	return 4
}

// SamplingMemory foretells the activations of a generation step of so many rows, of
// which some are sampled, on one worker, and what is reserved beside them as Footprint
// has it.
func SamplingMemory(c Config, o Options, rows, sampled, logits int) (bytes, reserved int64) {
	m := newMeter(c, o)
	m.Take(sampled * c.Hidden)
	m.Take(rows * c.Hidden)
	mark := m.Mark()
	m.activations(rows, false)
	m.forward(rows)
	m.Release(mark)
	m.Take(logits * c.VocabSize)
	bytes, reserved = m.need()
	if o.Device != torch.CPU {
		// Sampling has fourteen arrays like the logits; attention has the keys and values
		// that it gathers, and their copies, unless a kernel reads them where they are.
		gathered := 3 * max(pagedElements, c.MaxPositions*2*c.KVHeads*c.HeadDim)
		if o.tensorCores(c) {
			gathered = 0
		}
		bytes += max(o.beside(c, rows, 14), int64(gathered)*int64(o.size()))
	}
	return bytes, reserved
}

// CacheBlock is the bytes of a block of native.BlockTokens tokens in a KV cache over all
// layers.
func CacheBlock(c Config, o Options) int64 {
	p := Policy{config: c}
	return int64(c.Layers) * int64(p.Attention(0).CacheBlock()) * int64(o.cacheType(c).Size())
}

// CacheBlock is that of a cache of this policy's.
func (p *Policy) CacheBlock() int64 { return CacheBlock(p.config, p.options) }

// cacheType is the type of a cache's elements.
func (o Options) cacheType(c Config) torch.DType {
	switch {
	case o.DType == torch.Float64:
		return torch.Float64
	case o.tensorCores(c):
		return torch.BFloat16
	}
	return torch.Float32
}

// StepMemory foretells the bytes that a cache has beside its blocks: where steps join
// splits of attention, and the memory of recorded steps of up to so many sequences, their
// activations and, for each size, their input and what they draw.
func StepMemory(c Config, o Options, sequences int) (bytes int64) {
	if o.Kernels == nil {
		return 0
	}
	bytes = 4 * int64(o.stepScratch(c))
	if _, ok := o.Kernels.(cuda.Recorder); !ok {
		return bytes
	}
	largest := sizeOf(sequences, c.MaxPositions)
	bytes += stepMeter(c, o, largest.rows).Held()
	for s := sizeOf(1, 1); s.rows <= largest.rows; s.rows *= 2 {
		for s.keys = bucketKeys; s.keys <= largest.keys; s.keys *= 2 {
			bytes += 8*int64(s.words(o.queryWords(c))) + int64(s.rows*(cuda.SamplingSize+12))
		}
	}
	return bytes
}

// copies estimates how many elements libtorch's products and attention of so many rows take
// for copies of their operands and results.
func copies(c Config, rows int) int {
	return 4 * rows * max(2*c.Intermediate, newShapes(c).qkv, c.Hidden)
}

// RecordedMemory estimates the bytes that libtorch's operations take in recorded steps of
// up to so many sequences, and keep for the next: all recordings share them.
func RecordedMemory(c Config, o Options, sequences int) int64 {
	if _, ok := o.Kernels.(cuda.Recorder); !ok {
		return 0
	}
	return int64(copies(c, sizeOf(sequences, 1).rows)) * int64(o.size())
}

// stepScratch is how many words any step joins splits of attention in.
func (o Options) stepScratch(c Config) int {
	return o.scratch(c, stepQueries, sizeOf(1, c.MaxPositions).keys)
}

// stepQueries is for how many queries of the most keys there is room, unless they have more
// than scratchBytes.
const stepQueries = 256

// stepMeter books bucket.compute.
func stepMeter(c Config, o Options, rows int) *meter {
	m := newMeter(c, o)
	m.Take(rows * c.Hidden)
	mark := m.Mark()
	m.activations(rows, false)
	m.forward(rows)
	m.Release(mark)
	m.Take(min(o.LogitRows(c.VocabSize), rows) * c.VocabSize)
	m.Release(mark)
	return m
}

// shapes are sizes that follow from a configuration.
type shapes struct {
	qkv, att int      // of a row
	linears  [][2]int // out and in of every product of a forward pass
}

func newShapes(c Config) shapes {
	s := shapes{qkv: (c.Heads + 2*c.KVHeads) * c.HeadDim, att: c.Heads * c.HeadDim, linears: [][2]int{{c.VocabSize, c.Hidden}}}
	for range c.Layers {
		s.linears = append(s.linears, [2]int{s.qkv, c.Hidden}, [2]int{c.Hidden, s.att}, [2]int{2 * c.Intermediate, c.Hidden}, [2]int{c.Hidden, c.Intermediate})
	}
	return s
}

// meter books what a worker's passes take, in their order.
type meter struct {
	*torch.Meter
	p *Policy // a shape and options, no tensors
	shapes
	touched []int // elements at the beginning of each slab
}

func newMeter(c Config, o Options) *meter {
	compute := torch.Float32
	if o.DType == torch.Float64 {
		compute = torch.Float64
	}
	return &meter{Meter: torch.NewMeter(compute), p: &Policy{config: c, options: o}, shapes: newShapes(c)}
}

// Take books n elements.
func (m *meter) Take(n int) {
	slab, at := m.Meter.Take(n)
	if slab == len(m.touched) {
		m.touched = append(m.touched, 0)
	}
	m.touched[slab] = max(m.touched[slab], at+n)
}

// A CPU's system gives memory a large page at a time as it is touched.
const largePage = 2 << 20

// need is the bytes that come to be used, and what is asked for beside them.
func (m *meter) need() (used, reserved int64) {
	held := m.Held()
	if m.p.options.Device != torch.CPU {
		return held, 0
	}
	for _, n := range m.touched {
		used += (int64(n*m.p.options.size()) + largePage - 1) / largePage * largePage
	}
	used = min(used, held)
	return used, held - used
}

// train books Accumulate's passes over a worker's segments.
func (m *meter) train(dealt []segment) {
	c, recompute := m.p.config, m.p.options.Recompute
	for _, seg := range dealt {
		n, predicted := len(seg.tokens), len(seg.tokens)-len(seg.offsets)+1
		m.Take(n * c.Hidden)
		m.Take(n)
		m.Take(n * c.Hidden)
		for range c.Layers {
			if recompute {
				m.Take(n * c.Hidden)
			} else {
				m.activations(n, true)
			}
			mark := m.Mark()
			if recompute {
				m.activations(n, false)
			}
			m.forward(n)
			m.Release(mark)
		}
		if m.p.keepsLogits() {
			m.Take(predicted * c.VocabSize)
		}
		for range 3 { // scores
			m.Take(predicted)
		}
		m.head(predicted, m.p.keepsLogits())
	}
	for _, seg := range dealt {
		m.Take(len(seg.tokens) * c.Hidden)
	}
	for _, seg := range dealt {
		n, predicted := len(seg.tokens), len(seg.tokens)-len(seg.offsets)+1
		mark := m.Mark()
		m.Take(predicted)
		m.head(predicted, m.p.keepsLogits())
		m.Release(mark)
		if m.p.options.FreezeLayers < c.Layers {
			m.backward(n)
		}
		m.Release(mark)
	}
}

// score books scoreSegment.
func (m *meter) score(seg segment) {
	n, predicted := len(seg.tokens), len(seg.tokens)-len(seg.offsets)+1
	begin := m.Mark()
	m.Take(n * m.p.config.Hidden)
	mark := m.Mark()
	m.activations(n, false)
	m.forward(n)
	m.Release(mark)
	for range 3 {
		m.Take(predicted)
	}
	m.head(predicted, false)
	m.Release(begin)
}

// head books one chunk of the head, whose logits may be kept elsewhere.
func (m *meter) head(predicted int, kept bool) {
	mark := m.Mark()
	for lo, hi := range m.p.headChunks(predicted) {
		if !kept {
			m.Take((hi - lo) * m.p.config.VocabSize)
		}
		m.Take((hi - lo) * m.p.config.Hidden)
		break
	}
	m.Release(mark)
}

// activations books newActivations.
func (m *meter) activations(rows int, training bool) {
	c := m.p.config
	m.Take(rows * m.qkv)
	m.Take(rows * m.att)
	m.Take(rows * 2 * c.Intermediate)
	if !training {
		return
	}
	m.Take(rows * c.Hidden)
	m.Take(rows * c.Hidden)
	m.Take(rows)
	m.Take(rows)
	m.Take(rows * c.Heads)
	if c.family().qkNorm {
		m.Take(rows * m.qkv)
		m.Take(rows * (c.Heads + c.KVHeads))
	}
}

// operands books Policy.operands.
func (m *meter) operands(n int) {
	if m.p.options.halvesOperands() {
		n = (n + 1) / 2
	}
	m.Take(n)
}

// forward books what layerForward takes beside the activations.
func (m *meter) forward(rows int) {
	c := m.p.config
	half := m.p.rounds()
	m.operands(rows * c.Hidden)
	if half {
		m.Take(rows * c.Hidden)
	}
	m.operands(rows * c.Hidden)
	m.operands(rows * c.Intermediate)
	if half {
		m.Take(rows * c.Hidden)
	}
}

// backward books layerBackward.
func (m *meter) backward(rows int) {
	c := m.p.config
	if m.p.options.Recompute {
		m.activations(rows, true)
		m.Take(rows * c.Hidden)
		mark := m.Mark()
		m.forward(rows)
		m.Release(mark)
	}
	m.operands(rows * c.Hidden)
	m.Take(rows * c.Hidden)
	m.operands(rows * c.Intermediate)
	for _, width := range []int{c.Intermediate, m.att, m.qkv} {
		m.Take(rows * width)
	}
	if l := m.p.options.LoRA; l != nil {
		for range l.targets(c) {
			for range 4 { // both products and what they are scaled to
				m.Take(rows * l.Rank)
			}
		}
	}
}
