package mem

import (
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMapAtLeavesNoHole: while memory is mapped into a reservation and given back, nothing that
// other threads map ever lies inside it.
func TestMapAtLeavesNoHole(t *testing.T) {
	const size, other = 64 << 20, 4 << 20 // no small gap elsewhere takes the others
	base, err := Reserve(size)
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !stop.Load() {
				p, err := mmap(nil, other, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
				if err != nil {
					continue
				}
				if d := uintptr(p) - uintptr(base); d < size {
					t.Errorf("another thread's mapping lies %d bytes inside the reservation", d)
					stop.Store(true)
				}
				unix.MunmapPtr(p, other)
			}
		}()
	}
	for k := 0; k < 2000 && !stop.Load(); k++ {
		at := unsafe.Add(base, k%8*HugeSize)
		b, _, err := MapAt(at, size/2)
		if err != nil {
			t.Fatal(err)
		}
		b[k*4096%len(b)] = 1
		if err := Release(at, len(b)); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestOf(t *testing.T) {
	s, err := Of[uint64](1000)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range s {
		if x != 0 {
			t.Fatalf("element %d is %d", i, x)
		}
		s[i] = uint64(i)
	}
	if s[999] != 999 || len(s) != 1000 {
		t.Error("the memory does not hold what was written")
	}
	if err := Free(s); err != nil {
		t.Error(err)
	}
	b, _, err := Map(1)
	if err != nil || len(b) != HugeSize {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if err := Unmap(b); err != nil {
		t.Error(err)
	}
}

// resident is how many of the bytes have memory of their own.
func resident(t *testing.T, b []byte) (n int) {
	t.Helper()
	size := unix.Getpagesize()
	v := make([]byte, (len(b)+size-1)/size)
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&v[0]))); e != 0 {
		t.Fatal(e)
	}
	for _, x := range v {
		n += int(x&1) * size
	}
	return n
}

func TestLazy(t *testing.T) {
	s, err := Lazy[uint32](1 << 28)
	if err != nil {
		t.Skip(err)
	}
	for i := 0; i < len(s); i += 1 << 24 {
		if s[i]++; s[i] != 1 {
			t.Fatalf("element %d was %d", i, s[i]-1)
		}
	}
	if n := resident(t, unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), 4*len(s))); n != 16*unix.Getpagesize() {
		t.Errorf("16 elements far from each other take %d bytes", n)
	}
	if err := FreeLazy(s); err != nil {
		t.Error(err)
	}
}
