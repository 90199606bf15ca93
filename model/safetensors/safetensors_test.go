package safetensors

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func le(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// pythonTensors are the values that scripts/reference/safetensors_file.py writes.
func pythonTensors() []Tensor {
	var weight []float32
	for i := range 12 {
		weight = append(weight, float32(i)/8-0.5)
	}
	return []Tensor{
		{"layers.0.weight", F32, []int64{3, 4}, le(weight)},
		{"layers.0.bias", BF16, []int64{3}, le([]uint16{0x3fc0, 0xc010, 0x3a83})}, // 1.5, -2.25, 0.001 rounded
		{"half", F16, []int64{2, 1}, le([]uint16{0x3800, 0x7bff})},                // 0.5, 65504
		{"double", F64, nil, le(math.Pi)},
		{"ids", I64, []int64{2}, le([]int64{-1, 1 << 40})},
		{"counts", I32, []int64{3}, le([]int32{7, -7, math.MaxInt32})},
		{"bytes", U8, []int64{3}, []byte{0, 255, 128}},
		{"empty", F32, []int64{0, 4}, nil},
		{`quo"te<&>é`, F32, []int64{1}, le(float32(1))},
	}
}

// Python's file reads as the values written, and we write the very same bytes.
func TestMatchesPython(t *testing.T) {
	golden := "testdata/python.safetensors"
	f, err := Open(golden)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := pythonTensors()
	if n := len(f.Names()); n != len(want) {
		t.Errorf("%d tensors, want %d", n, len(want))
	}
	for _, w := range want {
		got, err := f.Tensor(w.Name)
		if err != nil {
			t.Error(err)
			continue
		}
		if got.DType != w.DType || !slices.Equal(got.Shape, w.Shape) || !bytes.Equal(got.Data, w.Data) {
			t.Errorf("%s: %s %v %x, want %s %v %x", w.Name, got.DType, got.Shape, got.Data, w.DType, w.Shape, w.Data)
		}
	}
	if f.Metadata()["format"] != "pt" {
		t.Errorf("metadata %v", f.Metadata())
	}
	path := filepath.Join(t.TempDir(), "go.safetensors")
	slices.Reverse(want)
	if err := Write(path, want, nil); err != nil {
		t.Fatal(err)
	}
	a, errA := os.ReadFile(golden)
	b, errB := os.ReadFile(path)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("our file differs from Python's:\n%q\n%q", a, b)
	}
}

// file lays out a header and data as they are.
func file(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

func TestRefuses(t *testing.T) {
	long := file("{}", 0)
	binary.LittleEndian.PutUint64(long, 1<<40)
	beyond := file("{}", 0)
	binary.LittleEndian.PutUint64(beyond, 3)
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"empty":             {nil, "too few"},
		"short":             {make([]byte, 7), "too few"},
		"no header":         {make([]byte, 8), "does not start"},
		"header too long":   {long, "more than the format's"},
		"header beyond end": {beyond, "the file has 2"},
		"not an object":     {file(`[]`, 0), "does not start"},
		"bad JSON":          {file(`{"a"`, 0), "header"},
		"text after":        {file(`{} x`, 0), "after the object"},
		"not UTF-8":         {file("{\"\xff\":1}", 0), "UTF-8"},
		"duplicate":         {file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2), `"a" occurs twice`},
		"duplicate field":   {file(`{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1), `"dtype" occurs twice`},
		"unknown field":     {file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}`, 1), "unknown field"},
		"missing field":     {file(`{"a":{"dtype":"U8","shape":[1]}}`, 1), "required"},
		"null":              {file(`{"a":{"dtype":"U8","shape":null,"data_offsets":[0,1]}}`, 1), "null"},
		"dtype":             {file(`{"a":{"dtype":"F8","shape":[1],"data_offsets":[0,1]}}`, 1), "not supported"},
		"negative":          {file(`{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}`, 1), "negative"},
		"fraction":          {file(`{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}`, 1), "shape"},
		"overflow":          {file(`{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}`, 0), "overflows"},
		"overflow to fit":   {file(`{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, 0), "overflows"},
		"size":              {file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 4), "needs 8"},
		"backwards":         {file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}`, 1), "begin and an end"},
		"overlap":           {file(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3), "overlaps"},
		"hole":              {file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2), "hole"},
		"cut":               {file(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 3), "the file is cut"},
		"left over":         {file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 2), "belong to no tensor"},
		"metadata":          {file(`{"__metadata__":{"a":1}}`, 0), "not a string"},
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want an error saying %q and the path", name, err, c.says)
		}
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
}

// A failed write leaves the old file and nothing beside it.
func TestWriteRefusesAndKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "model.safetensors")
	if err := Write(path, []Tensor{{"a", U8, []int64{1}, []byte{7}}}, nil); err != nil {
		t.Fatal(err)
	}
	for says, tensors := range map[string][]Tensor{
		"needs 4":       {{"a", F32, []int64{1}, []byte{1}}},
		"used twice":    {{"a", U8, []int64{0}, nil}, {"a", U8, []int64{0}, nil}},
		"is reserved":   {{metadataKey, U8, []int64{0}, nil}},
		"not supported": {{"a", "F8", []int64{1}, []byte{1}}},
	} {
		if err := Write(path, tensors, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error saying %q", err, says)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v %v in the folder, want one file", entries, err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Tensor("a"); err != nil || !bytes.Equal(got.Data, []byte{7}) {
		t.Errorf("%v %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
	if _, err := f.Tensor("a"); err == nil {
		t.Error("a closed file still hands out tensors")
	}
}

func FuzzParse(f *testing.F) {
	golden, err := os.ReadFile("testdata/python.safetensors")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"x":"y"}}  `, 1))
	f.Add(file(`{"a":{"dtype":"U8","shape":[2,0],"data_offsets":[0,0]}}`, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a File
		if a.parse(data) != nil {
			return
		}
		total := 0
		var tensors []Tensor
		for _, name := range a.Names() {
			x, err := a.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			n := x.DType.Size()
			for _, d := range x.Shape {
				n *= int(d)
			}
			if n != len(x.Data) {
				t.Fatalf("%s: %d bytes, shape says %d", name, len(x.Data), n)
			}
			total += n
			tensors = append(tensors, x)
		}
		if want := len(data) - 8 - int(binary.LittleEndian.Uint64(data)); total != want {
			t.Fatalf("tensors hold %d bytes of %d", total, want)
		}
		// Whatever was accepted can be written and accepted again.
		header, err := renderHeader(tensors, a.Metadata())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range tensors {
			header = append(header, x.Data...)
		}
		if err := new(File).parse(header); err != nil {
			t.Fatal(err)
		}
	})
}
