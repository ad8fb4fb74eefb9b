package pcap

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"millrace/internal/clock"
	"millrace/internal/mem"
)

// recorder takes packets from a queue's thread and writes them to a file by a goroutine of its own.
//
// Between them is a ring of bytes, outside the Go heap. An entry is 8 bytes of clock ticks, 8 of
// length and the frame, rounded up to 8 bytes; it lies in one piece: a length of skip
// says that the rest of the ring is unused.
type recorder struct {
	buf  []byte
	mask uint64
	_    [64]byte
	head atomic.Uint64 // bytes put in, ever
	seen uint64        // the producer's last sight of tail
	_    [64]byte
	tail atomic.Uint64 // bytes taken out, ever
	_    [64]byte

	written, failed atomic.Uint64 // packets, by the goroutine
	err             atomic.Pointer[error]

	f     io.WriteCloser
	w     *pcapgo.NgWriter
	start time.Time // of tick0
	tick0 uint64
	stop  chan struct{}
	done  chan struct{}
}

const (
	entryHead = 16
	skip      = 1<<64 - 1
	// idle is how long the goroutine rests when there is nothing to write.
	idle = 2 * time.Millisecond
)

// newRecorder begins a file. size is the buffer's, in bytes, rounded up to a power of two.
func newRecorder(name, port string, size int) (*recorder, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err // names the file
	}
	r, err := newRecorderTo(f, port, size)
	if err != nil {
		f.Close()
	}
	return r, err
}

func newRecorderTo(f io.WriteCloser, port string, size int) (*recorder, error) {
	w, err := pcapgo.NewNgWriterInterface(f, pcapgo.NgInterface{
		Name: port, LinkType: layers.LinkTypeEthernet, TimestampResolution: 9,
	}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "millrace"}})
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return nil, err
	}
	n := 1 << 17 // more than two of the longest frames
	for n < size {
		n *= 2
	}
	buf, _, err := mem.Map(n)
	if err != nil {
		return nil, err
	}
	clock.Hz() // measured now, not by the first packet
	r := &recorder{
		buf: buf, mask: uint64(n - 1), f: f, w: w, start: time.Now(), tick0: clock.Ticks(),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	go r.run()
	return r, nil
}

// run writes until stop, and then what is left.
func (r *recorder) run() {
	defer close(r.done)
	for {
		if r.drain() {
			continue
		}
		select {
		case <-r.stop:
			for r.drain() {
			}
			if err := r.f.Close(); err != nil {
				r.fail(err)
			}
			return
		case <-time.After(idle):
		}
	}
}

func (r *recorder) fail(err error) { r.err.CompareAndSwap(nil, &err) }

// drain writes everything in the buffer; false where there was nothing.
func (r *recorder) drain() bool {
	t, h := r.tail.Load(), r.head.Load()
	if t == h {
		return false
	}
	size := r.mask + 1
	n := uint64(0)
	for t != h {
		at := t & r.mask
		if size-at < entryHead || *r.u64(at + 8) == skip {
			t += size - at
			r.tail.Store(t)
			continue
		}
		k := *r.u64(at + 8)
		if r.err.Load() == nil {
			if err := r.write(r.buf[at+entryHead:at+entryHead+k], *r.u64(at)); err != nil {
				r.fail(err)
			}
		}
		if r.err.Load() == nil {
			n++
		} else {
			r.failed.Add(1)
		}
		t += entryHead + (k+7)&^7
		r.tail.Store(t)
	}
	if r.err.Load() == nil {
		if err := r.w.Flush(); err != nil {
			r.fail(err)
		}
	}
	if r.err.Load() != nil { // of these, nobody knows how many arrived
		r.failed.Add(n)
		return true
	}
	r.written.Add(n)
	return true
}

func (r *recorder) write(frame []byte, ticks uint64) error {
	return r.w.WritePacket(gopacket.CaptureInfo{
		Timestamp:     r.start.Add(clock.Duration(ticks - r.tick0)),
		CaptureLength: len(frame), Length: len(frame),
	}, frame)
}

// close writes what is left and ends the file.
func (r *recorder) close() error {
	close(r.stop)
	<-r.done
	mem.Unmap(r.buf)
	if e := r.err.Load(); e != nil {
		return *e
	}
	return nil
}
