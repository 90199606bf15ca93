package cuda

// Recorder is a Machine that can record work and repeat it with one call, as a CUDA
// graph.
type Recorder interface {
	Machine
	// Record runs f, and then once more to record what it queues: launches of this
	// machine and libtorch's operations on its device. f must always queue the same work
	// on the same memory, and must neither wait for the device nor copy from or to the
	// host. What it allocates is not to be used outside of it.
	Record(f func() error) (Recording, error)
}

// Recording is work that was recorded.
type Recording interface {
	// Replay queues it again; it reads what its memory holds by then.
	Replay() error
	Free()
}
