package train

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/ssr-go/ssr/rollout"
)

// journal is the file of a step's finished groups: JSON lines, each in a zstd
// frame of its own behind a skippable frame that says how long it is. Standard
// tools read it as one stream; a file that was cut short is good up to the cut.
type journal struct {
	mu      sync.Mutex
	file    *appendFile
	encoder *zstd.Encoder
}

const (
	skippableMagic = 0x184D2A50
	frameHeader    = 4 + 4 + 8 // magic, content size, content: the next frame's size
	journalSuffix  = ".jsonl.zst"
)

func journalPath(dir string, step int) string {
	return filepath.Join(dir, trajectoriesName, fmt.Sprintf(stepPattern+journalSuffix, step))
}

// openJournal returns what the step's journal holds, cuts off a torn end, and
// opens it for more.
func openJournal(dir string, step int) (*journal, []Finished, error) {
	path := journalPath(dir, step)
	done, size, err := readJournal(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), syncPath(dir)); err != nil {
		return nil, nil, err
	}
	file, err := openAppend(path, size)
	if err != nil {
		return nil, nil, fmt.Errorf("open journal: %w", err)
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return &journal{file: file, encoder: encoder}, done, nil
}

// record makes f durable. It is safe for concurrent use.
func (j *journal) record(f Finished) error {
	line, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("journal group %s: %w", f.Group.ID, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	frame := j.encoder.EncodeAll(append(line, '\n'), make([]byte, frameHeader, frameHeader+len(line)/3))
	binary.LittleEndian.PutUint32(frame, skippableMagic)
	binary.LittleEndian.PutUint32(frame[4:], 8)
	binary.LittleEndian.PutUint64(frame[8:], uint64(len(frame)-frameHeader))
	if err := j.file.append(frame); err != nil {
		return fmt.Errorf("journal group %s: %w", f.Group.ID, err)
	}
	return nil
}

func (j *journal) Close() error { return errors.Join(j.encoder.Close(), j.file.Close()) }

func readJournal(path string) ([]Finished, int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read journal: %w", err)
	}
	records, good, err := parseJournal(data)
	if err != nil {
		return nil, 0, fmt.Errorf("journal %s: %w", path, err)
	}
	return records, good, nil
}

// parseJournal returns the records up to the first one that is not whole, and
// how many bytes they take.
func parseJournal(data []byte) ([]Finished, int64, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, 0, err
	}
	defer decoder.Close()
	var records []Finished
	good := 0
	for rest := data; len(rest) >= frameHeader && binary.LittleEndian.Uint32(rest) == skippableMagic; {
		size := binary.LittleEndian.Uint64(rest[8:])
		if size > uint64(len(rest)-frameHeader) {
			break
		}
		end := frameHeader + int(size)
		line, err := decoder.DecodeAll(rest[frameHeader:end], nil)
		if err != nil {
			break
		}
		var f Finished
		if err := json.Unmarshal(line, &f); err != nil || f.Group == nil {
			return nil, 0, fmt.Errorf("byte %d: not a finished group (%v)", good, err)
		}
		records = append(records, f)
		good, rest = good+end, rest[end:]
	}
	return records, int64(good), nil
}

// latest keeps the last record of each group, in the order of first appearance,
// with the counts of all its records added up.
func latest(records []Finished) []Finished {
	at := map[string]int{}
	var kept []Finished
	for _, f := range records {
		if i, ok := at[f.Group.ID]; ok {
			counts := maps.Clone(f.Counts)
			if counts == nil {
				counts = map[string]float64{}
			}
			for name, n := range kept[i].Counts {
				counts[name] += n
			}
			kept[i] = Finished{Group: f.Group, Counts: counts}
			continue
		}
		at[f.Group.ID] = len(kept)
		kept = append(kept, f)
	}
	return kept
}

// Trajectories calls yield with every group that a run has finished, step by
// step. It may be used while the run goes on.
func Trajectories(dir string, yield func(step int, f Finished) error) error {
	folder := filepath.Join(dir, trajectoriesName)
	names, err := entries(folder, stepPrefix, journalSuffix)
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	for _, name := range names { // sorted, hence by step
		var step int
		if _, err := fmt.Sscanf(name, stepPattern+journalSuffix, &step); err != nil {
			continue
		}
		records, _, err := readJournal(filepath.Join(folder, name))
		if err != nil {
			return fmt.Errorf("train: %w", err)
		}
		for _, f := range latest(records) {
			if err := yield(step, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// FindTrajectory returns the trajectory with that ID from a run's folder.
func FindTrajectory(dir, id string) (*rollout.Trajectory, error) {
	found := errors.New("found")
	var t *rollout.Trajectory
	err := Trajectories(dir, func(_ int, f Finished) error {
		for _, t = range f.Group.Trajectories {
			if t.ID == id {
				return found
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, found):
		return t, nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("train: %s holds no trajectory %q: %w", filepath.Join(dir, trajectoriesName), id, fs.ErrNotExist)
}
