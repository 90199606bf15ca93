package model

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// published is the config.json of a Qwen2.5 checkpoint as published, before
// transformers 5 changed how rotary embeddings are written.
const published = `{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
  "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
  "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
  "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
  "vocab_size": 151936
}`

func TestConfigReadsBothSpellings(t *testing.T) {
	c, err := parseConfig([]byte(published))
	if err != nil {
		t.Fatal(err)
	}
	c.extra = nil
	want := Config{
		ModelType: "qwen2", VocabSize: 151936, Hidden: 896, Intermediate: 4864, Layers: 24, Heads: 14, KVHeads: 2, HeadDim: 64,
		MaxPositions: 32768, NormEps: 1e-6, RopeTheta: 1e6, TieEmbeddings: true, InitStd: 0.02, BOS: 151643, EOS: []int32{151645},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("published: got %+v, want %+v", c, want)
	}
	// A Qwen2.5 checkpoint with its context extended as its makers describe.
	yarn := strings.Replace(published, `"rope_theta"`, `"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}, "rope_theta"`, 1)
	if c, err = parseConfig([]byte(yarn)); err != nil {
		t.Fatal(err)
	}
	if want := (RopeScaling{Type: "yarn", Factor: 4, OriginalMaxPosns: 32768}); c.RopeTheta != 1e6 || *c.RopeScaling != want {
		t.Errorf("yarn: got %v, %+v", c.RopeTheta, c.RopeScaling)
	}
	// testdata is transformers 5's own writing.
	c, err = ReadConfig("testdata/llama-untied")
	if err != nil {
		t.Fatal(err)
	}
	scaling := RopeScaling{Type: llama3Rope, Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPosns: 32}
	if c.RopeTheta != 5e5 || c.RopeScaling == nil || *c.RopeScaling != scaling || c.HeadDim != 10 || !reflect.DeepEqual(c.EOS, []int32{2, 3}) {
		t.Errorf("transformers 5: got %+v (%+v)", c, c.RopeScaling)
	}
}

// TestConfigDefaults: fields that a file leaves out have the values that
// transformers 5.12 gives them in that family.
func TestConfigDefaults(t *testing.T) {
	const shape = `"vocab_size": 9, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 5, "num_attention_heads": 32,
		"max_position_embeddings": 99, "rms_norm_eps": 1e-5`
	scaling := &RopeScaling{Type: "llama3", Factor: 16, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPosns: 8192}
	for _, tc := range []struct {
		name, fields         string
		kvHeads, dim, window int
		theta                float64
		scaling              *RopeScaling
		sliding              []bool
	}{
		{"qwen2", ``, 32, 2, 0, 1e4, nil, nil},
		{"qwen2", `, "use_sliding_window": true, "max_window_layers": 3`, 32, 2, 4096, 1e4, nil, []bool{false, false, false, true, true}},
		{"qwen2", `, "use_sliding_window": true, "max_window_layers": 3, "sliding_window": null`, 32, 2, 0, 1e4, nil, nil},
		{"qwen3", `, "rope_theta": 5e6`, 32, 128, 0, 5e6, nil, nil},
		{"llama", ``, 32, 2, 0, 1e4, nil, nil},
		{"mistral", ``, 8, 2, 4096, 1e4, nil, []bool{true, true, true, true, true}},
		{"mistral", `, "sliding_window": null, "rope_theta": 1e6`, 8, 2, 0, 1e6, nil, nil},
		{"cwm", ``, 8, 128, 8192, 1e6, scaling, []bool{false, true, true, true, false}},
		{"cwm", `, "rope_scaling": {"rope_type": "default"}, "rope_theta": 500`, 8, 128, 8192, 500, nil, []bool{false, true, true, true, false}},
	} {
		c, err := parseConfig([]byte(`{"model_type": "` + tc.name + `", ` + shape + tc.fields + `}`))
		if err != nil {
			t.Errorf("%s%s: %v", tc.name, tc.fields, err)
			continue
		}
		if c.KVHeads != tc.kvHeads || c.HeadDim != tc.dim || c.Window != tc.window || c.RopeTheta != tc.theta ||
			!reflect.DeepEqual(c.RopeScaling, tc.scaling) || !reflect.DeepEqual(c.Sliding, tc.sliding) {
			t.Errorf("%s%s: got %+v (%+v)", tc.name, tc.fields, c, c.RopeScaling)
		}
	}
}

func TestConfigRoundTrip(t *testing.T) {
	for _, name := range goldenCases {
		dir := filepath.Join("testdata", name)
		c, err := ReadConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.encode("float32")
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(out)
		if err != nil {
			t.Fatal(err)
		}
		if string(again.extra["attention_dropout"]) != string(c.extra["attention_dropout"]) {
			t.Errorf("%s: a field that is not interpreted was lost", dir)
		}
		c.extra, again.extra = nil, nil
		if !reflect.DeepEqual(c, again) {
			t.Errorf("%s: %+v became %+v", dir, c, again)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	for _, tc := range []struct{ from, to, want string }{
		{`"qwen2"`, `"mamba"`, `model_type "mamba" is not supported; known: cwm, llama, mistral, qwen2, qwen3`},
		{`"hidden_size": 896`, `"hidden_size": 0`, "hidden_size is 0 or missing"},
		{`"rms_norm_eps": 1e-06,`, ``, "rms_norm_eps is 0 or missing"},
		{`"num_key_value_heads": 2`, `"num_key_value_heads": 3`, "num_attention_heads 14 is not a multiple of num_key_value_heads 3"},
		{`"use_sliding_window": false`, `"use_sliding_window": true, "sliding_window": -1`, "sliding_window is missing or not positive"},
		{`"use_sliding_window": false`, `"layer_types": ["full_attention"]`, "layer_types has 1 entries for 24 layers"},
		{`"num_hidden_layers": 24`, `"num_hidden_layers": 1, "layer_types": ["chunked_attention"]`, `layer_types[0] "chunked_attention" is not supported`},
		{`"max_position_embeddings": 32768`, `"max_position_embeddings": 1099511627776`, "max_position_embeddings is 1099511627776"},
		{`"silu"`, `"gelu"`, `hidden_act "gelu" is not supported`},
		{`"rope_theta": 1000000.0`, `"rope_scaling": {"type": "longrope", "factor": 4.0}`, `rope scaling "longrope" is not supported; known: linear, llama3, yarn`},
		{`"rope_theta": 1000000.0`, `"rope_scaling": {"type": "linear"}`, "factor is 0 or missing"},
		{`"rope_theta": 1000000.0`, `"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}`, `unknown field "mrope_section"`},
		{`"rope_theta": 1000000.0`, `"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}`, "low_freq_factor 4, high_freq_factor 1"},
		{`"rope_theta": 1000000.0`, `"rope_theta": 1`, "rope_theta is 1 or missing"},
		{`"rope_theta": 1000000.0`, `"partial_rotary_factor": 0.5`, "partial_rotary_factor 0.5 is not supported"},
		{`"vocab_size": 151936`, `"vocab_size": "many"`, "vocab_size"},
		{`151645`, `"end"`, "eos_token_id"},
		{`{`, `[`, "invalid character"},
	} {
		_, err := parseConfig([]byte(strings.Replace(published, tc.from, tc.to, 1)))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s → %s: got %v, want %q", tc.from, tc.to, err, tc.want)
		}
	}
	if _, err := ReadConfig(t.TempDir()); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("missing file: %v", err)
	}
}

// FuzzConfig: no config.json makes parsing panic, and what it accepts survives
// being written and read again.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(published))
	for _, name := range goldenCases {
		data, err := os.ReadFile(filepath.Join("testdata", name, "config.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			return
		}
		out, err := c.encode("float32")
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		c.extra, again.extra = nil, nil
		if len(c.EOS) == 0 {
			c.EOS = nil
		}
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v became %+v", c, again)
		}
	})
}
