package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model/safetensors"
)

// An adapter's folder is PEFT's: adapter_config.json, and adapter_model.safetensors
// with the tensors of each adapted module under its path in the model
// (https://huggingface.co/docs/peft/developer_guides/checkpoint).
const (
	adapterConfig = "adapter_config.json"
	adapterFile   = "adapter_model.safetensors"
	adapterPrefix = "base_model.model."
	loraA         = "lora_A.weight"
	loraB         = "lora_B.weight"
)

// peftConfig is adapter_config.json, as far as it says anything here.
type peftConfig struct {
	Type    string          `json:"peft_type"`
	Task    string          `json:"task_type"`
	Base    string          `json:"base_model_name_or_path"`
	Rank    int             `json:"r"`
	Alpha   float64         `json:"lora_alpha"`
	Dropout float64         `json:"lora_dropout"`
	Targets json.RawMessage `json:"target_modules"`
	// Layers, where there are some, are the only ones with adapters.
	Layers  []int  `json:"layers_to_transform"`
	Bias    string `json:"bias"`
	Infer   bool   `json:"inference_mode"`
	FanIn   bool   `json:"fan_in_fan_out"`
	RSLora  bool   `json:"use_rslora"`
	DoRA    bool   `json:"use_dora"`
	Saved   []any  `json:"modules_to_save"`
	Ranks   any    `json:"rank_pattern"`
	Alphas  any    `json:"alpha_pattern"`
	Weights any    `json:"init_lora_weights"`
}

// ReadLoRA reads what adapters a PEFT folder holds, and how many layers below them
// have none. What they do beyond plain LoRA is refused.
func ReadLoRA(dir string) (l *LoRA, frozen int, err error) {
	c, targets, err := readPEFT(dir)
	if err != nil {
		return nil, 0, fmt.Errorf("model: %s: %w", filepath.Join(dir, adapterConfig), err)
	}
	if len(c.Layers) > 0 {
		frozen = c.Layers[0]
	}
	return &LoRA{Rank: c.Rank, Alpha: c.Alpha, Targets: targets}, frozen, nil
}

func readPEFT(dir string) (c peftConfig, targets []string, err error) {
	data, err := os.ReadFile(filepath.Join(dir, adapterConfig))
	if err != nil {
		return c, nil, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, nil, err
	}
	empty := func(v any) bool {
		m, isMap := v.(map[string]any)
		return v == nil || isMap && len(m) == 0
	}
	switch {
	case c.Type != "LORA":
		return c, nil, fmt.Errorf("peft_type %q is not supported; want LORA", c.Type)
	case c.Rank <= 0:
		return c, nil, fmt.Errorf("r is %d; want a positive number", c.Rank)
	case c.Bias != "" && c.Bias != "none":
		return c, nil, fmt.Errorf("bias %q is not supported; want none", c.Bias)
	case c.FanIn, c.RSLora, c.DoRA:
		return c, nil, errors.New("fan_in_fan_out, use_rslora and use_dora are not supported")
	case len(c.Saved) > 0:
		return c, nil, fmt.Errorf("modules_to_save %v is not supported", c.Saved)
	case slices.ContainsFunc(c.Layers, func(n int) bool { return n != c.Layers[0]+slices.Index(c.Layers, n) }):
		return c, nil, fmt.Errorf("layers_to_transform %v is not supported; want all layers from one on", c.Layers)
	case !empty(c.Ranks), !empty(c.Alphas):
		return c, nil, errors.New("rank_pattern and alpha_pattern are not supported")
	}
	var all string
	if json.Unmarshal(c.Targets, &all) == nil {
		if all != "all-linear" {
			return c, nil, fmt.Errorf("target_modules %q is not supported; want a list of names, or all-linear", all)
		}
		return c, nil, nil
	}
	if err := json.Unmarshal(c.Targets, &targets); err != nil || len(targets) == 0 {
		return c, nil, fmt.Errorf("target_modules %s: want a list of names", c.Targets)
	}
	return c, targets, nil
}

// errNoAdapters is of a policy that was made without Options.LoRA.
var errNoAdapters = errors.New("model: the policy has no adapters; set Options.LoRA")

// SaveAdapter writes the adapters into dir, which it makes, as PEFT does; each file
// appears whole or not at all. base is the model they belong to, as PEFT's users
// will load it: a folder or a name.
func (p *Policy) SaveAdapter(dir, base string) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.saveAdapter(dir, base, func(param Parameter) *torch.Tensor { return param.Tensor })
}

// saveAdapter writes the values that from gives for each of the trained parameters.
func (p *Policy) saveAdapter(dir, base string, from func(Parameter) *torch.Tensor) error {
	l := p.options.LoRA
	if l == nil {
		return errNoAdapters
	}
	var targets []string
	for _, t := range l.targets(p.config) {
		targets = append(targets, t.target())
	}
	list, err := json.Marshal(targets)
	if err != nil {
		return err
	}
	c := peftConfig{
		Type: "LORA", Task: "CAUSAL_LM", Base: base, Rank: l.Rank, Alpha: l.scale() * float64(l.Rank), Targets: list,
		Bias: "none", Infer: true, Ranks: map[string]any{}, Alphas: map[string]any{}, Weights: true,
	}
	if p.options.FreezeLayers > 0 {
		for i := p.options.FreezeLayers; i < p.config.Layers; i++ {
			c.Layers = append(c.Layers, i)
		}
	}
	config, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	var tensors []safetensors.Tensor
	for _, param := range p.trained {
		tensors = append(tensors, stored(adapterPrefix+param.Name, from(param), false))
	}
	err = safetensors.Write(filepath.Join(dir, adapterFile), tensors, map[string]string{"format": "pt"})
	if err == nil {
		err = atomicfile.WriteBytes(filepath.Join(dir, adapterConfig), append(config, '\n'))
	}
	if err != nil {
		return fmt.Errorf("model: adapter: %w", err)
	}
	return nil
}

// LoadAdapter replaces the adapters by those of a PEFT folder with the same rank,
// scale and modules. When it has others, nothing changes.
func (p *Policy) LoadAdapter(dir string) error {
	l := p.options.LoRA
	if l == nil {
		return errNoAdapters
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	stored, _, err := ReadLoRA(dir)
	if err != nil {
		return err
	}
	if stored.Rank != l.Rank || stored.scale() != l.scale() {
		return fmt.Errorf("model: %s: rank %d and scale %v; the policy has rank %d and scale %v", dir, stored.Rank, stored.scale(), l.Rank, l.scale())
	}
	f, err := safetensors.Open(filepath.Join(dir, adapterFile))
	if err != nil {
		return fmt.Errorf("model: adapter: %w", err)
	}
	defer f.Close()
	names := f.Names()
	for _, param := range p.trained {
		t, err := f.Tensor(adapterPrefix + param.Name)
		if err == nil {
			err = checkStored(t, param.shape)
		}
		if err != nil {
			return fmt.Errorf("model: adapter: %s: %w", dir, err)
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == adapterPrefix+param.Name })
	}
	if len(names) > 0 {
		return fmt.Errorf("model: adapter: %s has %s, which the policy's adapters have not", dir, names[0])
	}
	for _, param := range p.trained {
		if err := readTensor(param.Tensor, adapterPrefix+param.Name, f.Tensor, fill); err != nil {
			return fmt.Errorf("model: adapter: %s: %w", dir, err)
		}
	}
	return p.refresh()
}
