package model

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/model/safetensors"
)

// checkStored says what keeps a stored tensor from filling one of a shape.
func checkStored(t safetensors.Tensor, shape []int) error {
	if !slices.EqualFunc(t.Shape, shape, func(a int64, b int) bool { return a == int64(b) }) {
		return fmt.Errorf("tensor %s has shape %v; config.json asks for %v", t.Name, t.Shape, shape)
	}
	_, err := decoder(t)
	return err
}

// decoder returns the elements of a stored tensor one after the other.
func decoder(t safetensors.Tensor) (func() float64, error) {
	data := t.Data
	take := func(n int) []byte {
		b := data[:n]
		data = data[n:]
		return b
	}
	switch t.DType {
	case safetensors.F32:
		return func() float64 { return float64(math.Float32frombits(binary.LittleEndian.Uint32(take(4)))) }, nil
	case safetensors.F64:
		return func() float64 { return math.Float64frombits(binary.LittleEndian.Uint64(take(8))) }, nil
	case safetensors.BF16:
		return func() float64 {
			return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(take(2))) << 16))
		}, nil
	case safetensors.F16:
		return func() float64 { return fromFloat16(binary.LittleEndian.Uint16(take(2))) }, nil
	}
	return nil, fmt.Errorf("tensor %s: dtype %s is not supported for weights; want F32, F64, BF16 or F16", t.Name, t.DType)
}

// shards are the open weight files of a checkpoint.
type shards struct {
	files  map[string]*safetensors.File
	byName map[string]string // tensor to file; nil when there is one file
}

func openWeights(dir string) (*shards, error) {
	s := &shards{files: map[string]*safetensors.File{}}
	names := []string{weightsFile}
	index, err := os.ReadFile(filepath.Join(dir, weightsFile+".index.json"))
	switch {
	case err == nil:
		var parsed struct {
			WeightMap map[string]string `json:"weight_map"`
		}
		if err := json.Unmarshal(index, &parsed); err != nil {
			return nil, fmt.Errorf("%s.index.json: %w", weightsFile, err)
		}
		s.byName, names = parsed.WeightMap, nil
		for _, name := range parsed.WeightMap {
			if name != filepath.Base(name) {
				return nil, fmt.Errorf("%s.index.json names %q, which is not a file of its folder", weightsFile, name)
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	for _, name := range names {
		f, err := safetensors.Open(filepath.Join(dir, name))
		if err != nil {
			s.close()
			switch {
			case !errors.Is(err, fs.ErrNotExist):
			case s.byName != nil:
				err = fmt.Errorf("%w; %s.index.json names it, so part of the model is missing", err, weightsFile)
			default:
				err = fmt.Errorf("%w; weights are this file, or shards and %s.index.json: store those of a pytorch_model.bin with transformers' save_pretrained", err, weightsFile)
			}
			return nil, err
		}
		s.files[name] = f
	}
	return s, nil
}

func (s *shards) tensor(name string) (safetensors.Tensor, error) {
	file := weightsFile
	if s.byName != nil {
		file = s.byName[name]
	}
	f, ok := s.files[file]
	if !ok {
		return safetensors.Tensor{}, fmt.Errorf("the index has no tensor %s", name)
	}
	return f.Tensor(name)
}

// check says which parameter the files lack or have in another shape, and which
// tensor they have that is no parameter.
func (s *shards) check(c Config, params []Parameter) error {
	known := make(map[string]bool, len(params))
	for _, param := range params {
		known[param.Name] = true
		t, err := s.tensor(param.Name)
		if err != nil {
			return fmt.Errorf("%w, which config.json asks for; are the two of one model?", err)
		}
		if err := checkStored(t, param.shape); err != nil {
			return err
		}
	}
	for _, file := range slices.Sorted(maps.Keys(s.files)) {
		for _, name := range s.files[file].Names() {
			switch {
			case known[name], strings.HasSuffix(name, ".rotary_emb.inv_freq"): // old files store what config.json says
			case name == headName && c.TieEmbeddings:
				if err := s.checkTied(); err != nil {
					return err
				}
			default:
				return fmt.Errorf("%s has a tensor %s, which a %s model of this config.json has not", file, name, c.ModelType)
			}
		}
	}
	return nil
}

// checkTied refuses a head that is stored beside an embedding that is not it.
func (s *shards) checkTied() error {
	head, err := s.tensor(headName)
	if err != nil {
		return err
	}
	embedding, err := s.tensor(embeddingName)
	if err != nil {
		return err
	}
	if head.DType != embedding.DType || !bytes.Equal(head.Data, embedding.Data) {
		return fmt.Errorf("%s is not %s, though config.json ties them; set tie_word_embeddings to false", headName, embeddingName)
	}
	return nil
}

func (s *shards) close() {
	for _, f := range s.files {
		f.Close() // read-only: nothing can be lost
	}
}
