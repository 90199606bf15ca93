package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/internal/lfs"
)

// maxHeader is the format's own limit on the header.
const maxHeader = 100_000_000

// cut ends what is said of a file that ends too early.
const cut = "the file is cut; copy it again"

const metadataKey = "__metadata__"

// File is an open, validated file. It is safe for concurrent reading.
type File struct {
	path     string
	mapped   []byte
	tensors  map[string]Tensor
	names    []string
	metadata map[string]string
}

// Open maps a file and validates all of it but the tensors' values.
func Open(path string) (*File, error) {
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %s: %w", path, err)
	}
	return f, nil
}

func open(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if info.Size() < 8 {
		return nil, fmt.Errorf("%d bytes are too few for a header: %s", info.Size(), cut)
	}
	mapped, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	f := &File{path: path, mapped: mapped}
	if err := f.parse(mapped); err != nil {
		unix.Munmap(mapped)
		return nil, err
	}
	return f, nil
}

// Close unmaps the file. The Data of its tensors must not be used afterwards:
// touching it is a fault that cannot be recovered from.
func (f *File) Close() error {
	if f.mapped == nil {
		return nil
	}
	err := unix.Munmap(f.mapped)
	f.mapped, f.tensors, f.names = nil, nil, nil
	return err
}

// Names lists the tensors in the order of their data.
func (f *File) Names() []string { return slices.Clone(f.names) }

// Metadata returns the header's free-form strings.
func (f *File) Metadata() map[string]string { return f.metadata }

// Tensor returns a tensor whose Data is the mapped file itself: read-only (a
// write faults), valid until Close, and faulting if the file is truncated meanwhile.
func (f *File) Tensor(name string) (Tensor, error) {
	t, ok := f.tensors[name]
	if !ok {
		return Tensor{}, fmt.Errorf("safetensors: %s: no tensor %q", f.path, name)
	}
	return t, nil
}

// entry is a tensor as the header describes it.
type entry struct {
	tensor     Tensor
	begin, end uint64
}

// parse validates data, the whole file, and fills f.
func (f *File) parse(data []byte) error {
	if err := lfs.Check(data); err != nil {
		return err
	}
	if len(data) < 8 {
		return fmt.Errorf("%d bytes are too few for a header: %s", len(data), cut)
	}
	n := binary.LittleEndian.Uint64(data)
	if n > maxHeader {
		return fmt.Errorf("the header claims %d bytes, more than the format's %d: this is no safetensors file", n, maxHeader)
	}
	if n > uint64(len(data)-8) {
		return fmt.Errorf("the header claims %d bytes, the file has %d after its length: %s", n, len(data)-8, cut)
	}
	header, body := data[8:8+n], data[8+n:]
	if len(header) == 0 || header[0] != '{' {
		return errors.New("the header does not start with '{'")
	}
	if !utf8.Valid(header) {
		return errors.New("the header is not valid UTF-8")
	}
	fields, err := object(header)
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	var entries []entry
	for _, field := range fields {
		if field.key == metadataKey {
			if f.metadata, err = stringMap(field.value); err != nil {
				return fmt.Errorf("header: %s: %w", metadataKey, err)
			}
			continue
		}
		e, err := parseEntry(field.value)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", field.key, err)
		}
		e.tensor.Name = field.key
		entries = append(entries, e)
	}
	sort.SliceStable(entries, func(i, j int) bool {
		a, b := entries[i], entries[j]
		return a.begin < b.begin || a.begin == b.begin && a.end < b.end
	})
	f.tensors = make(map[string]Tensor, len(entries))
	at := uint64(0)
	for _, e := range entries {
		switch name := e.tensor.Name; {
		case e.begin < at:
			return fmt.Errorf("tensor %q at [%d, %d) overlaps the one before it, which ends at %d", name, e.begin, e.end, at)
		case e.begin > at:
			return fmt.Errorf("tensor %q at [%d, %d) leaves a hole after %d", name, e.begin, e.end, at)
		case e.end > uint64(len(body)):
			return fmt.Errorf("tensor %q at [%d, %d) reaches over the end of the data, %d bytes: %s", name, e.begin, e.end, len(body), cut)
		}
		at = e.end
		e.tensor.Data = body[e.begin:e.end:e.end]
		f.tensors[e.tensor.Name] = e.tensor
		f.names = append(f.names, e.tensor.Name)
	}
	if at != uint64(len(body)) {
		return fmt.Errorf("%d bytes of data belong to no tensor", uint64(len(body))-at)
	}
	return nil
}

func parseEntry(raw json.RawMessage) (e entry, err error) {
	fields, err := object(raw)
	if err != nil {
		return e, err
	}
	var offsets []uint64
	seen := 0
	for _, field := range fields {
		var into any
		switch field.key {
		case "dtype":
			into = &e.tensor.DType
		case "shape":
			into = &e.tensor.Shape
		case "data_offsets":
			into = &offsets
		default:
			return e, fmt.Errorf("unknown field %q", field.key)
		}
		if bytes.Equal(field.value, []byte("null")) {
			return e, fmt.Errorf("%s is null", field.key)
		}
		if err := json.Unmarshal(field.value, into); err != nil {
			return e, fmt.Errorf("%s: %w", field.key, err)
		}
		seen++
	}
	if seen != 3 {
		return e, errors.New("dtype, shape and data_offsets are required")
	}
	if len(offsets) != 2 || offsets[0] > offsets[1] {
		return e, fmt.Errorf("data_offsets %v are not a begin and an end", offsets)
	}
	e.begin, e.end = offsets[0], offsets[1]
	want, err := byteLen(e.tensor.DType, e.tensor.Shape)
	if err != nil {
		return e, err
	}
	if got := e.end - e.begin; got != want {
		return e, fmt.Errorf("data_offsets give it %d bytes, %s %v needs %d", got, e.tensor.DType, e.tensor.Shape, want)
	}
	return e, nil
}

type field struct {
	key   string
	value json.RawMessage
}

// object reads a JSON object, refusing repeated keys, which encoding/json would
// let the last one win, and anything after it.
func object(raw []byte) ([]field, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := d.Token(); err != nil {
		return nil, err
	} else if tok != json.Delim('{') {
		return nil, fmt.Errorf("%v where an object was expected", tok)
	}
	var fields []field
	seen := map[string]bool{}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return nil, err
		}
		f := field{key: tok.(string)}
		if seen[f.key] {
			return nil, fmt.Errorf("%q occurs twice", f.key)
		}
		seen[f.key] = true
		if err := d.Decode(&f.value); err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("text after the object")
	}
	return fields, nil
}

func stringMap(raw []byte) (map[string]string, error) {
	fields, err := object(raw)
	if err != nil {
		return nil, err
	}
	m := make(map[string]string, len(fields))
	for _, f := range fields {
		var s *string
		if err := json.Unmarshal(f.value, &s); err != nil || s == nil {
			return nil, fmt.Errorf("%q is not a string", f.key)
		}
		m[f.key] = *s
	}
	return m, nil
}
