//go:build invariants

package packet

import "testing"

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return
}

// TestUseAfterFree: in a build with the tag invariants, what touches a freed buffer shows.
func TestUseAfterFree(t *testing.T) {
	p, c := testPool(t, 128)
	m := chain(c, []byte("secret"))
	b := m.Bytes()
	c.Free1(m)
	if string(b) == "secret" {
		t.Error("a freed packet can still be read")
	}
	if !panics(func() { m.Bytes() }) {
		if n := len(m.Bytes()); n == 6 {
			t.Error("a freed packet keeps its length")
		}
	}

	for name, touch := range map[string]func(*Mbuf){
		"data":     func(m *Mbuf) { m.room()[300] = 1 },
		"next":     func(m *Mbuf) { m.SetNext(m) },
		"refcount": func(m *Mbuf) { m.RefCnt = 2 },
		"segments": func(m *Mbuf) { m.NbSegs = 2 },
	} {
		m := c.Alloc1()
		c.Free1(m)
		touch(m)
		if !panics(func() { c.Alloc1() }) {
			t.Errorf("a write to the %s of a free buffer goes unnoticed", name)
		}
		p.format(m)
		c.FreeRaw([]uint32{m.Index()}) // Alloc1 had already taken it off
	}

	raw := []uint32{0}
	c.AllocRaw(raw)
	At(raw[0]).room()[200] = 7 // as a driver that received into it
	c.FreeRaw(raw)
	c.Free1(c.Alloc1())
	closePool(t, p, c)
}
