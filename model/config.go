package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/internal/lfs"
)

// Config is the shape of a decoder-only transformer, as a Hugging Face
// config.json states it.
type Config struct {
	// ModelType selects the architecture family: "qwen2", "qwen3", "llama",
	// "mistral" or "cwm".
	ModelType string
	// VocabSize is the number of rows of the embedding and of the head.
	VocabSize int
	// Hidden is the width of the residual stream, Intermediate that of the MLP.
	Hidden, Intermediate int
	Layers               int
	// Heads query heads read KVHeads key and value heads of HeadDim each.
	Heads, KVHeads, HeadDim int
	// MaxPositions is the longest sequence, the context window.
	MaxPositions int
	NormEps      float64
	RopeTheta    float64
	// RopeScaling is nil for plain rotary embeddings.
	RopeScaling *RopeScaling
	// Window is how many tokens a query of a layer in Sliding sees, itself the
	// last of them. Sliding has an entry a layer; nil (and Window 0) when every
	// layer sees all tokens.
	Window  int
	Sliding []bool
	// TieEmbeddings makes the head the embedding matrix itself.
	TieEmbeddings bool
	// InitStd is the standard deviation of freshly drawn weights.
	InitStd float64
	// BOS is -1 when there is none; EOS lists every id that ends a document.
	BOS int32
	EOS []int32

	// extra holds the fields of a loaded file that are not interpreted here, so
	// that saving the policy does not lose them.
	extra map[string]json.RawMessage
}

// family is what distinguishes one architecture from another.
type family struct {
	// architecture is the class name in config.json.
	architecture string
	// qkvBias adds a bias to the query, key and value projections.
	qkvBias bool
	// qkNorm normalises each head of the queries and of the keys before they are
	// rotated.
	qkNorm bool
	// defaults are the values that transformers assumes of absent fields, where
	// they are not the same for every family; rope, of absent rotary parameters.
	defaults, rope string
	// slides says whether a layer sees only the window, where layer_types does
	// not say it; nil for a family without windows. window gives the fields of
	// config.json that say what Window and Sliding do.
	slides func(f file, layer int) bool
	window func(c Config) map[string]any
	// uniform: there are no layer_types, all layers slide or none does.
	uniform bool
	// needsBOS: transformers refuses a config.json with no bos_token_id.
	needsBOS bool
	// fixed are fields of config.json that may only have this value: the shape
	// that is implemented. An absent field has it.
	fixed map[string]any
}

// families are the architectures that can be loaded, by model_type.
var families = map[string]family{"qwen2": qwen2, "qwen3": qwen3, "llama": llama, "mistral": mistral, "cwm": cwm}

func (c Config) family() family { return families[c.ModelType] }

// file is config.json on disk; pointers tell an absent field from a zero.
type file struct {
	Architectures []string        `json:"architectures,omitempty"`
	ModelType     string          `json:"model_type"`
	VocabSize     int             `json:"vocab_size"`
	Hidden        int             `json:"hidden_size"`
	Intermediate  int             `json:"intermediate_size"`
	Layers        int             `json:"num_hidden_layers"`
	Heads         int             `json:"num_attention_heads"`
	KVHeads       *int            `json:"num_key_value_heads"`
	HeadDim       *int            `json:"head_dim,omitempty"`
	MaxPositions  int             `json:"max_position_embeddings"`
	NormEps       float64         `json:"rms_norm_eps"`
	RopeTheta     *float64        `json:"rope_theta,omitempty"`
	Partial       *float64        `json:"partial_rotary_factor"`
	RopeScaling   json.RawMessage `json:"rope_scaling,omitempty"`
	RopeParams    json.RawMessage `json:"rope_parameters,omitempty"`
	Window        *int            `json:"sliding_window"`
	UseWindow     bool            `json:"use_sliding_window"`
	WindowLayers  int             `json:"max_window_layers"`
	LayerTypes    []string        `json:"layer_types"`
	Tie           *bool           `json:"tie_word_embeddings"`
	HiddenAct     string          `json:"hidden_act"`
	InitStd       *float64        `json:"initializer_range,omitempty"`
	BOS           *int32          `json:"bos_token_id"`
	EOS           json.RawMessage `json:"eos_token_id"`
}

// ReadConfig reads dir/config.json.
func ReadConfig(dir string) (Config, error) {
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fmt.Errorf("model: %s: %w; a model is a Hugging Face folder of config.json, %s or its shards, and tokenizer.json", path, fs.ErrNotExist, weightsFile)
	}
	if err != nil {
		return Config{}, fmt.Errorf("model: %w", err)
	}
	if err := lfs.Check(data); err != nil {
		return Config{}, fmt.Errorf("model: %s: %w", path, err)
	}
	c, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("model: %s: %w", path, err)
	}
	return c, nil
}

func parseConfig(data []byte) (Config, error) {
	var kind struct {
		ModelType string `json:"model_type"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return Config{}, explain(err)
	}
	fam, ok := families[kind.ModelType]
	if !ok {
		return Config{}, unknown(kind.ModelType)
	}
	var f file
	for _, data := range [][]byte{[]byte(fam.defaults), data} {
		if err := json.Unmarshal(data, &f); err != nil {
			return Config{}, explain(err)
		}
	}
	var extra map[string]json.RawMessage
	if err := json.Unmarshal(data, &extra); err != nil {
		return Config{}, err
	}
	if q := extra["quantization_config"]; len(q) > 0 && string(q) != "null" {
		return Config{}, errors.New("quantization_config: quantised weights are not supported; take the model's bfloat16 or float32 ones")
	}
	if err := checkFixed(extra, fam.fixed); err != nil {
		return Config{}, err
	}
	c := Config{
		ModelType: f.ModelType, VocabSize: f.VocabSize, Hidden: f.Hidden, Intermediate: f.Intermediate,
		Layers: f.Layers, Heads: f.Heads, KVHeads: f.Heads, MaxPositions: f.MaxPositions, NormEps: f.NormEps,
		InitStd: 0.02, BOS: -1, extra: extra,
	}
	set(&c.KVHeads, f.KVHeads)
	if f.Heads > 0 {
		c.HeadDim = f.Hidden / f.Heads
	}
	set(&c.HeadDim, f.HeadDim)
	set(&c.TieEmbeddings, f.Tie)
	set(&c.InitStd, f.InitStd)
	set(&c.BOS, f.BOS)
	if err := c.setRope(f); err != nil {
		return Config{}, err
	}
	if err := c.setWindow(f); err != nil {
		return Config{}, err
	}
	if f.HiddenAct != "" && f.HiddenAct != "silu" {
		return Config{}, fmt.Errorf("hidden_act %q is not supported; want silu", f.HiddenAct)
	}
	if err := c.setEOS(f.EOS); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// explain says of which field of the file an error is, and of what kind.
func explain(err error) error {
	var kind *json.UnmarshalTypeError
	switch {
	case !errors.As(err, &kind):
		return fmt.Errorf("this is no JSON: %w", err)
	case kind.Field == "":
		return fmt.Errorf("this is a JSON %s; want an object", kind.Value)
	}
	return fmt.Errorf("%s is a %s; want %v", kind.Field, kind.Value, kind.Type)
}

func unknown(modelType string) error {
	if modelType == "" {
		return fmt.Errorf("no model_type: is this a model's config.json? known: %s", strings.Join(slices.Sorted(maps.Keys(families)), ", "))
	}
	return fmt.Errorf("model_type %q is not supported; known: %s", modelType, strings.Join(slices.Sorted(maps.Keys(families)), ", "))
}

func set[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}

func checkFixed(fields map[string]json.RawMessage, fixed map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(fixed)) {
		raw, ok := fields[name]
		if !ok || string(raw) == "null" {
			continue
		}
		var got any
		if err := json.Unmarshal(raw, &got); err != nil || got != fixed[name] {
			return fmt.Errorf("%s %s is not supported; want %v", name, raw, fixed[name])
		}
	}
	return nil
}

// Kinds of attention, in layer_types.
const (
	fullAttention    = "full_attention"
	slidingAttention = "sliding_attention"
)

func (c *Config) setWindow(f file) error {
	fam := c.family()
	switch {
	case fam.slides == nil || f.Layers < 0 || f.Layers > maxLayers:
		return nil
	case f.LayerTypes != nil && fam.uniform:
		return fmt.Errorf("layer_types is not supported for %s", c.ModelType)
	case f.LayerTypes != nil && len(f.LayerTypes) != f.Layers:
		return fmt.Errorf("layer_types has %d entries for %d layers", len(f.LayerTypes), f.Layers)
	}
	sliding := make([]bool, f.Layers)
	for i := range sliding {
		if f.LayerTypes == nil {
			sliding[i] = fam.slides(f, i)
			continue
		}
		switch kind := f.LayerTypes[i]; kind {
		case fullAttention:
		case slidingAttention:
			sliding[i] = true
		default:
			return fmt.Errorf("layer_types[%d] %q is not supported; want %s or %s", i, kind, fullAttention, slidingAttention)
		}
	}
	if !slices.Contains(sliding, true) {
		return nil
	}
	if f.Window == nil || *f.Window <= 0 {
		return fmt.Errorf("sliding_window is missing or not positive, but there are layers of %s", slidingAttention)
	}
	c.Window, c.Sliding = *f.Window, sliding
	return nil
}

// window is how many tokens a query of a layer sees; 0 means all.
func (c Config) window(layer int) int {
	if c.Sliding == nil || !c.Sliding[layer] {
		return 0
	}
	return c.Window
}

// WindowOfAll is how many tokens a query sees in every layer; 0 where some layer sees
// all.
func (c Config) WindowOfAll() int {
	if slices.Contains(c.Sliding, false) {
		return 0
	}
	return c.Window
}

func (c Config) layerTypes() []string {
	types := make([]string, c.Layers)
	for i := range types {
		types[i] = fullAttention
		if c.window(i) > 0 {
			types[i] = slidingAttention
		}
	}
	return types
}

func (c *Config) setEOS(raw json.RawMessage) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if json.Unmarshal(raw, &c.EOS) == nil {
		return nil
	}
	var one int32
	if err := json.Unmarshal(raw, &one); err != nil {
		return fmt.Errorf("eos_token_id %s: want an id or a list of ids", raw)
	}
	c.EOS = []int32{one}
	return nil
}

const maxLayers = 1 << 12

// Validate says what is wrong with the shape, naming the field of config.json.
func (c Config) Validate() error {
	if _, ok := families[c.ModelType]; !ok {
		return unknown(c.ModelType)
	}
	for _, f := range []struct {
		name    string
		v, most int // most is far beyond any model: a damaged file must not ask for all memory
	}{
		{"vocab_size", c.VocabSize, 1 << 24}, {"hidden_size", c.Hidden, 1 << 20}, {"intermediate_size", c.Intermediate, 1 << 22},
		{"num_hidden_layers", c.Layers, maxLayers}, {"num_attention_heads", c.Heads, 1 << 12}, {"num_key_value_heads", c.KVHeads, 1 << 12},
		{"head_dim", c.HeadDim, 1 << 12}, {"max_position_embeddings", c.MaxPositions, 1 << 22},
	} {
		if f.v <= 0 || f.v > f.most {
			return fmt.Errorf("%s is %d or missing; want 1 to %d", f.name, f.v, f.most)
		}
	}
	switch {
	case c.Heads%c.KVHeads != 0:
		return fmt.Errorf("num_attention_heads %d is not a multiple of num_key_value_heads %d", c.Heads, c.KVHeads)
	case c.HeadDim%2 != 0:
		return fmt.Errorf("head_dim %d is odd; rotary embeddings need pairs", c.HeadDim)
	case !(c.NormEps > 0):
		return fmt.Errorf("rms_norm_eps is %v or missing; want a positive number", c.NormEps)
	case !(c.RopeTheta > 1):
		return fmt.Errorf("rope_theta is %v or missing; want a number above 1", c.RopeTheta)
	case c.Window < 0 || c.Window > 0 != slices.Contains(c.Sliding, true):
		return fmt.Errorf("sliding_window is %d but the layers that slide are %v", c.Window, c.Sliding)
	case c.Window > 0 && c.family().slides == nil:
		return fmt.Errorf("sliding windows are not supported for %s", c.ModelType)
	case c.Sliding != nil && len(c.Sliding) != c.Layers:
		return fmt.Errorf("there are %d entries of sliding layers for %d layers", len(c.Sliding), c.Layers)
	case c.family().uniform && slices.Contains(c.Sliding, true) && slices.Contains(c.Sliding, false):
		return fmt.Errorf("some layers slide and some do not, which %s cannot", c.ModelType)
	case c.BOS < 0 && c.family().needsBOS:
		return fmt.Errorf("bos_token_id is null; a %s model has one", c.ModelType)
	case c.RopeScaling != nil:
		return c.RopeScaling.validate()
	}
	return nil
}

// encode renders config.json, with the fields of the file it came from.
func (c Config) encode(dtype string) ([]byte, error) {
	fields := maps.Clone(c.extra)
	if fields == nil {
		fields = map[string]json.RawMessage{}
	}
	// One spelling of what has several; older readers know no other.
	for _, name := range []string{"rope_parameters", "rope_scaling", "dtype"} {
		delete(fields, name)
	}
	values := map[string]any{
		"architectures": []string{c.family().architecture}, "model_type": c.ModelType,
		"vocab_size": c.VocabSize, "hidden_size": c.Hidden, "intermediate_size": c.Intermediate,
		"num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads,
		"head_dim": c.HeadDim, "max_position_embeddings": c.MaxPositions, "rms_norm_eps": c.NormEps,
		"rope_theta": c.RopeTheta, "tie_word_embeddings": c.TieEmbeddings, "hidden_act": "silu",
		"initializer_range": c.InitStd, "torch_dtype": dtype, "use_cache": true,
		"bos_token_id": nil, "eos_token_id": nil,
	}
	switch {
	case c.RopeScaling != nil:
		values["rope_scaling"] = c.RopeScaling
	case c.family().rope != "":
		values["rope_scaling"] = RopeScaling{Type: defaultRope}
	}
	if c.family().window != nil {
		delete(fields, "layer_types")
		maps.Copy(values, c.family().window(c))
	}
	if c.BOS >= 0 {
		values["bos_token_id"] = c.BOS
	}
	switch len(c.EOS) {
	case 0:
	case 1:
		values["eos_token_id"] = c.EOS[0]
	default:
		values["eos_token_id"] = c.EOS
	}
	for name, v := range values {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		fields[name] = raw
	}
	out, err := json.MarshalIndent(fields, "", "  ")
	return append(out, '\n'), err
}
