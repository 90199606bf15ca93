//go:build linux

package pid1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Stream is the trainer's end of the stream that pid1.c describes. Its methods
// may be called from one goroutine at a time, Kill from any.
type Stream struct {
	w     io.Writer
	r     io.Reader
	write sync.Mutex // frames are written whole
	count int        // of commands; under write, as the next
	busy  bool       // a command runs
}

// chunk is the most bytes of a frame of input or output.
const chunk = 1 << 16

// NewStream waits for the first process and gives it the lifetime after which
// it ends by itself, and the filter, which may be nil. It blocks on r.
func NewStream(w io.Writer, r io.Reader, lifetime time.Duration, filter []byte) (*Stream, error) {
	s := &Stream{w: w, r: r}
	kind, _, err := s.next(nil)
	if err != nil {
		return nil, err
	}
	if kind != 'H' {
		return nil, fmt.Errorf("the first process said %q", kind)
	}
	seconds := uint64((lifetime + time.Second - 1) / time.Second)
	if err := s.put('L', binary.NativeEndian.AppendUint64(nil, seconds)); err != nil {
		return nil, err
	}
	if filter != nil {
		return s, s.put('F', filter)
	}
	return s, nil
}

func (s *Stream) put(kind byte, data []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.putLocked(kind, data)
}

func (s *Stream) putLocked(kind byte, data []byte) error {
	frame := append(binary.LittleEndian.AppendUint32([]byte{kind}, uint32(len(data))), data...)
	_, err := s.w.Write(frame)
	return err
}

// next reads a frame, its data into buf, which has room for chunk bytes.
func (s *Stream) next(buf []byte) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[1:])
	if n > uint32(len(buf)) {
		return 0, nil, fmt.Errorf("frame %q of %d bytes", head[0], n)
	}
	_, err = io.ReadFull(s.r, buf[:n])
	return head[0], buf[:n], err
}

// Start sends a command; Follow must come next.
func (s *Stream) Start(r Request) error {
	s.write.Lock()
	defer s.write.Unlock()
	err := s.putLocked('R', r.Encode())
	s.busy = err == nil
	s.count++
	return err
}

// Kill ends the running command with everything it started; Follow then returns
// its reply. Without a command it does nothing.
func (s *Stream) Kill() error {
	s.write.Lock()
	defer s.write.Unlock()
	if !s.busy {
		return nil
	}
	return s.putLocked('K', nil)
}

// Follow feeds stdin to the command, passes on what it prints, and returns at
// its end. Writers that fail lose output, no more. A Read that blocks longer
// than the command outlives Follow.
func (s *Stream) Follow(stdin io.Reader, stdout, stderr io.Writer) (Reply, error) {
	taken, ended := make(chan struct{}, 1), make(chan struct{})
	defer close(ended)
	go s.feed(s.count, stdin, taken, ended)
	buf := make([]byte, chunk)
	for {
		kind, data, err := s.next(buf)
		if err != nil {
			return Reply{}, err
		}
		switch kind {
		case 'O':
			_, _ = stdout.Write(data)
		case 'e':
			_, _ = stderr.Write(data)
		case 'A':
			select {
			case taken <- struct{}{}:
			default:
				return Reply{}, errors.New("input was taken twice")
			}
		case 'S':
			s.write.Lock()
			s.busy = false
			s.write.Unlock()
			return DecodeReply(data)
		default:
			return Reply{}, fmt.Errorf("unknown frame %q", kind)
		}
	}
}

// feed sends input, one frame at a time. What it sends is void after the
// command's end: the first process drops it.
func (s *Stream) feed(command int, stdin io.Reader, taken <-chan struct{}, ended <-chan struct{}) {
	buf := make([]byte, chunk)
	for {
		n, err := stdin.Read(buf)
		if n > 0 {
			if !s.input(command, 'I', buf[:n]) {
				return
			}
			select {
			case <-taken:
			case <-ended:
				return
			}
		}
		if err != nil {
			s.input(command, 'E', nil)
			return
		}
	}
}

// input sends a frame of input to a command, unless it has ended.
func (s *Stream) input(command int, kind byte, data []byte) bool {
	s.write.Lock()
	defer s.write.Unlock()
	return s.busy && s.count == command && s.putLocked(kind, data) == nil
}
