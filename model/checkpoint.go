package model

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model/safetensors"
)

const weightsFile = "model.safetensors"

// Load reads a policy in Hugging Face layout: dir/config.json and
// dir/model.safetensors, or the shards that dir/model.safetensors.index.json
// names. Weights may be stored as F32, F64, BF16 or F16.
func Load(dir string, o Options) (*Policy, error) {
	c, err := ReadConfig(dir)
	if err != nil {
		return nil, err
	}
	files, err := openWeights(dir)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	defer files.close()
	// Before any memory is taken: the file may be of another model.
	params, _ := layout(c)
	if err := files.check(c, params); err != nil {
		return nil, fmt.Errorf("model: %s: %w", dir, err)
	}
	p, err := newPolicy(c, o)
	if err != nil {
		return nil, err
	}
	p.initAdapters(0)
	if err := p.readAll(files); err != nil {
		p.Close()
		return nil, fmt.Errorf("model: %s: %w", dir, err)
	}
	return p, nil
}

// LoadWeights replaces the weights by those of a checkpoint of the same shape;
// adapters stay. When it is of another shape, nothing changes.
func (p *Policy) LoadWeights(dir string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	files, err := openWeights(dir)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	defer files.close()
	if err := files.check(p.config, p.params); err != nil {
		return fmt.Errorf("model: %s: %w", dir, err)
	}
	if err := p.readAll(files); err != nil {
		return fmt.Errorf("model: %s: %w", dir, err)
	}
	return nil
}

// readAll fills the parameters from files that have been checked.
func (p *Policy) readAll(files *shards) error {
	for _, param := range p.params {
		if err := readTensor(param.Tensor, param.Name, files.tensor, p.fill); err != nil {
			return err
		}
	}
	p.dropFollowers()
	p.keepBase()
	return p.refresh()
}

// readTensor fills a tensor from a stored one.
func readTensor(to *torch.Tensor, name string, from func(string) (safetensors.Tensor, error), fill func(*torch.Tensor, func() float64)) error {
	t, err := from(name)
	if err != nil {
		return err
	}
	if err := checkStored(t, to.Shape()); err != nil {
		return err
	}
	next, err := decoder(t)
	if err != nil {
		return err
	}
	fill(to, next)
	return nil
}

// Save writes config.json and model.safetensors into dir, which it makes if it
// is not there; each file appears whole or not at all. Storage is F32 (F64 for a
// float64 policy), or BF16 for torch.BFloat16. Adapters are merged into the
// weights.
func (p *Policy) Save(dir string, storage torch.DType) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.save(dir, storage, func(param Parameter) *torch.Tensor { return param.Tensor })
}

// ErrNoMean is returned by SaveMean where there is none: Options.EMA asks for none,
// or no Step has been taken.
var ErrNoMean = errors.New("model: there is no mean of the weights")

// SaveMean writes the running mean of the weights as Save writes the weights, or
// as SaveAdapter writes the adapters. Where the policy is the first of several
// replicas, others are the rest.
func (p *Policy) SaveMean(dir string, storage torch.DType, base string, others ...*Policy) error {
	all, unlock, err := p.together(others)
	if err != nil {
		return err
	}
	defer unlock()
	if p.mean == nil || p.steps() == 0 {
		return ErrNoMean
	}
	var views []*torch.Tensor
	defer func() {
		for _, v := range views {
			v.Free()
		}
	}()
	mean := func(param Parameter) *torch.Tensor {
		views = append(views, assemble(all, param, func(q *Policy) *torch.Tensor { return q.mean }))
		return views[len(views)-1]
	}
	if p.options.LoRA != nil {
		return p.saveAdapter(dir, base, mean)
	}
	frozen := p.flat.Len() - p.live.Len()
	return p.save(dir, storage, func(param Parameter) *torch.Tensor {
		if param.offset < frozen {
			return param.Tensor
		}
		param.offset -= frozen
		return mean(param)
	})
}

// together checks that p and others are replicas which have the whole optimizer's
// state between them, in order, and keeps their weights as they are until unlock.
func (p *Policy) together(others []*Policy) (all []*Policy, unlock func(), err error) {
	all = append([]*Policy{p}, others...)
	for i, q := range all {
		if s := q.options.Shard; s.Index != i || max(s.Of, 1) != len(all) || q.live.Len() != p.live.Len() {
			return nil, nil, fmt.Errorf("model: replica %d of %d has shard %d of %d; give all replicas in their order", i, len(all), s.Index, max(s.Of, 1))
		}
	}
	for _, q := range all {
		q.mu.RLock()
	}
	return all, func() {
		for _, q := range all {
			q.mu.RUnlock()
		}
	}, nil
}

// assemble gives the values of a trained parameter in a buffer that each replica has
// its shard of; the caller frees the result, which is a view where one has it all.
func assemble(all []*Policy, param Parameter, of func(*Policy) *torch.Tensor) *torch.Tensor {
	var whole *torch.Tensor
	for _, p := range all {
		lo, hi := p.owned(param)
		if hi-lo == param.len() {
			return of(p).View(lo, param.shape...)
		}
		if lo >= hi {
			continue
		}
		if whole == nil {
			whole = p.options.Device.New(torch.Optimizer, p.flat.DType(), param.shape...)
		}
		first, _, _ := p.Shard()
		from, to := of(p).View(lo, hi-lo), whole.View(first+lo-param.offset, hi-lo)
		torch.Copy(to, from)
		from.Free()
		to.Free()
	}
	return whole
}

// save writes the values that from gives for each parameter.
func (p *Policy) save(dir string, storage torch.DType, from func(Parameter) *torch.Tensor) error {
	name := "float32"
	switch {
	case storage == torch.BFloat16:
		name = "bfloat16"
	case p.flat.DType() == torch.Float64:
		name = "float64"
	}
	config, err := p.config.encode(name)
	if err != nil {
		return fmt.Errorf("model: config.json: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	tensors := make([]safetensors.Tensor, len(p.params))
	for i, param := range p.params {
		tensors[i] = stored(param.Name, from(param), storage == torch.BFloat16)
	}
	if err := safetensors.Write(filepath.Join(dir, weightsFile), tensors, nil); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	if err := atomicfile.WriteBytes(filepath.Join(dir, "config.json"), config); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	return nil
}

// stored describes a dense tensor for the file, without a copy unless it is
// converted or not in this process's memory.
func stored(name string, t *torch.Tensor, bf16 bool) safetensors.Tensor {
	out := safetensors.Tensor{Name: name, DType: safetensors.F32}
	for _, n := range t.Shape() {
		out.Shape = append(out.Shape, int64(n))
	}
	switch {
	case bf16:
		half := torch.New(torch.Weights, torch.BFloat16, t.Shape()...)
		torch.Copy(half, t)
		out.DType, out.Data = safetensors.BF16, slices.Clone(half.Bytes())
		half.Free()
		return out
	case t.DType() == torch.Float64:
		out.DType = safetensors.F64
	}
	onHost(t, false, func(host *torch.Tensor) {
		if out.Data = host.Bytes(); host != t {
			out.Data = slices.Clone(out.Data)
		}
	})
	return out
}

// Names of the moments in the optimizer's file, as PyTorch calls them.
const (
	meanSuffix   = ".exp_avg"
	squareSuffix = ".exp_avg_sq"
	// Of the exact weights of a bfloat16 policy, and of the mean of the weights.
	masterSuffix = ".master"
	emaSuffix    = ".ema"
)

// SaveOptimizer writes AdamW's state and the version to a safetensors file,
// whole or not at all. Where the policy is the first of several replicas, others are
// the rest; the file does not tell how many there were.
func (p *Policy) SaveOptimizer(path string, others ...*Policy) error {
	all, unlock, err := p.together(others)
	if err != nil {
		return err
	}
	defer unlock()
	steps := p.steps()
	for i, q := range all {
		if q.steps() != steps || q.Version() != p.Version() {
			return fmt.Errorf("model: optimizer: replica %d has taken %d steps to version %d, replica 0 %d to %d",
				i, q.steps(), q.Version(), steps, p.Version())
		}
	}
	metadata := map[string]string{"version": strconv.FormatInt(p.Version(), 10), "steps": strconv.FormatInt(steps, 10)}
	var tensors []safetensors.Tensor
	for _, param := range p.trained {
		if steps == 0 {
			break // before the first they are zero, loaded or not
		}
		for i, s := range p.optimizerState() {
			whole := assemble(all, param, func(q *Policy) *torch.Tensor { return q.optimizerState()[i].of })
			tensors = append(tensors, stored(param.Name+s.suffix, whole, false))
			defer whole.Free() // the file is written from its memory
		}
	}
	if err := safetensors.Write(path, tensors, metadata); err != nil {
		return fmt.Errorf("model: optimizer: %w", err)
	}
	return nil
}

// LoadOptimizer restores what SaveOptimizer wrote, the version included; of the state
// only the policy's shard.
func (p *Policy) LoadOptimizer(path string) error {
	p.training.Lock()
	defer p.training.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := safetensors.Open(path)
	if err != nil {
		return fmt.Errorf("model: optimizer: %w", err)
	}
	defer f.Close()
	steps, err := strconv.ParseInt(f.Metadata()["steps"], 10, 64)
	version, err2 := strconv.ParseInt(f.Metadata()["version"], 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("model: optimizer: %s: %w", path, err)
	}
	p.dropFollowers()
	p.needOptimizer()
	p.moments.mean.Zero()
	p.moments.square.Zero()
	for _, param := range p.trained {
		if steps == 0 {
			break // nothing was stored
		}
		for _, s := range p.optimizerState() {
			if err := p.readOwned(s.of, param, s.suffix, f); err != nil {
				return fmt.Errorf("model: optimizer: %s: %w", path, err)
			}
		}
	}
	p.moments.steps = steps
	p.version.Store(version)
	return nil
}

// readOwned fills the policy's part of a parameter in a buffer of its shard.
func (p *Policy) readOwned(buffer *torch.Tensor, param Parameter, suffix string, f *safetensors.File) error {
	t, err := f.Tensor(param.Name + suffix)
	if err == nil {
		err = checkStored(t, param.shape)
	}
	lo, hi := p.owned(param)
	if err != nil || lo >= hi {
		return err
	}
	first, _, _ := p.Shard()
	size := len(t.Data) / param.len()
	t.Data = t.Data[(first+lo-param.offset)*size:]
	next, err := decoder(t)
	if err != nil {
		return err
	}
	own := buffer.View(lo, hi-lo)
	fill(own, next)
	own.Free()
	return nil
}

// steps is how many updates the optimizer's state has in it.
func (p *Policy) steps() int64 {
	if p.moments == nil {
		return 0
	}
	return p.moments.steps
}

type state struct {
	suffix string
	of     *torch.Tensor
}

// optimizerState lists what the optimizer keeps, all of the policy's shard.
func (p *Policy) optimizerState() (all []state) {
	for _, s := range []state{{meanSuffix, p.moments.mean}, {squareSuffix, p.moments.square}, {masterSuffix, p.master}, {emaSuffix, p.mean}} {
		if s.of != nil {
			all = append(all, s)
		}
	}
	return all
}
