package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/rl"
)

// A run's folder:
//
//	lock                               held by the trainer
//	metrics.jsonl                      one object a step
//	trajectories/step-000012.jsonl.zst finished groups of a step, the journal
//	checkpoints/step-000012/           state.json and weights/
//	batches/step-000012.json           recorded batches, where asked for
const (
	lockName         = "lock"
	metricsName      = "metrics.jsonl"
	trajectoriesName = "trajectories"
	checkpointsName  = "checkpoints"
	batchesName      = "batches"
	stepPrefix       = "step-"
	stepPattern      = stepPrefix + "%06d"
)

// ErrLocked is wrapped when another process trains in the same folder.
var ErrLocked = errors.New("another process is training in this folder")

// lockFolder creates the folder where needed and holds it until unlock, or
// until the process ends in whatever way.
func lockFolder(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}

// recordBatch writes a step's batch.
func recordBatch(dir string, step int, r *rl.Recorded) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	folder := filepath.Join(dir, batchesName)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(folder, fmt.Sprintf(stepPattern+".json", step)), data)
}

// entries are the names in dir with a prefix and a suffix, sorted; none where there is
// no such folder.
func entries(dir, prefix, suffix string) (names []string, err error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range all {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), suffix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// syncTree makes every file and folder under dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(path)
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// appendFile is a file that grows by whole records, each durable before append returns.
type appendFile struct {
	f    *os.File
	size int64 // of the whole records
}

// openAppend opens path, creating it where needed, and cuts it to size bytes.
func openAppend(path string, size int64) (*appendFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), syncPath(filepath.Dir(path))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &appendFile{f, size}, nil
}

// append leaves nothing of a record that it could not write, so that the next one can
// be read.
func (a *appendFile) append(record []byte) error {
	_, err := a.f.WriteAt(record, a.size)
	if err == nil {
		err = a.f.Sync()
	}
	if err != nil {
		return errors.Join(err, a.f.Truncate(a.size))
	}
	a.size += int64(len(record))
	return nil
}

func (a *appendFile) Close() error { return a.f.Close() }
