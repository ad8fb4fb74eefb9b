// Package live floods a kernel interface with frames from inside the kernel (XDP live frames, BPF_F_TEST_XDP_LIVE_FRAMES), at
// millions a second of one core, and counts those that come out elsewhere. It is for what is measured at full load; paced
// traffic that is followed packet by packet is another generator's.
package live

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"millrace/packet"
)

// Counter is a per-CPU counter of a BPF program.
type Counter struct{ *ebpf.Map }

func newCounter() (Counter, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "mr_live", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		err = fmt.Errorf("make BPF map: %w", err)
	}
	return Counter{m}, err
}

// Read sums it up.
func (c Counter) Read() (sum uint64, err error) {
	var v []uint64
	err = c.Lookup(uint32(0), &v)
	for _, n := range v {
		sum += n
	}
	return sum, err
}

// next makes R3 the counter's value after it was counted up; it uses R0 to R5.
func (c Counter) next(fail string) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, c.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, fail),
		asm.LoadMem(asm.R3, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R3, 1),
		asm.StoreMem(asm.R0, 0, asm.R3, asm.DWord),
	}
}

const (
	xdpDrop = 1

	offTTL4, offSum4, offDst4, offUDP4 = 14 + 8, 14 + 10, 14 + 16, 34
	offTTL6, offDst6, offUDP6          = 14 + 7, 14 + 24, 54
)

// Frame is a UDP frame to flood with. Each of 256 destinations, in the last byte of the address, has its turn; the
// port is lower the higher the address, so that the checksum of UDP is the same for all.
type Frame struct {
	bytes          []byte
	v6             bool
	ttl, dst, port int16 // offsets
}

// NewFrame makes one of size bytes, without FCS, to the Ethernet address of a router. The last bytes of dst are
// replaced.
func NewFrame(router [6]byte, size int, src, dst [16]byte, v6 bool) *Frame {
	f := &Frame{bytes: make([]byte, size), v6: v6, ttl: offTTL4, dst: offDst4 + 3, port: offUDP4 + 3}
	b := f.bytes
	e := packet.Ethernet(b)
	e.SetDst(router)
	e.SetSrc([6]byte{2, 0, 0, 0, 9, 9})
	l4 := offUDP4
	if v6 {
		f.ttl, f.dst, f.port, l4 = offTTL6, offDst6+15, offUDP6+3, offUDP6
		e.SetType(packet.EtherIPv6)
		h := packet.IPv6(b[14:54])
		dst[15] = 0
		h.Init(src, dst, packet.ProtoUDP, size-54)
		h.SetHopLimit(64)
	} else {
		e.SetType(packet.EtherIPv4)
		h := packet.IPv4(b[14:34])
		d := [4]byte(dst[12:])
		d[3] = 0
		h.Init([4]byte(src[12:]), d, packet.ProtoUDP, size-14)
		h.SetTTL(64)
		h.SetSum()
		// The checksum's low byte is 0xff, so that the n-th destination of 256 has the checksum of the first less n, without a borrow.
		for id := uint16(1); b[offSum4+1] != 0xff; id++ {
			h.SetID(id)
			h.SetSum()
		}
	}
	binary.BigEndian.PutUint16(b[l4:], 1024)
	binary.BigEndian.PutUint16(b[l4+2:], 1024+255)
	binary.BigEndian.PutUint16(b[l4+4:], uint16(size-l4))
	if v6 { // IPv4 needs none
		h := packet.IPv6(b[14:54])
		packet.PutSum(b[l4+6:], ^packet.Fold(packet.Sum(b[l4:], packet.Pseudo6(h.Src(), h.Dst(), packet.ProtoUDP, size-l4))))
	}
	return f
}

// Flood puts frames on the wire of an interface.
type Flood struct {
	frame *Frame
	prog  *ebpf.Program
	Sent  Counter
}

// NewFlood is an XDP program for live test runs: frames go round, so it restores what a router changes, gives each
// destination its turn, and transmits by an interface.
func NewFlood(f *Frame, ifindex int) (*Flood, error) {
	c, err := newCounter()
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	p := asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, 0, asm.Word), // xdp_md.data
		asm.LoadMem(asm.R8, asm.R1, 4, asm.Word), // xdp_md.data_end
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(len(f.bytes))),
		asm.JGT.Reg(asm.R2, asm.R8, "drop"),
	}
	p = append(p, c.next("drop")...)
	for at := range 3 { // MAC addresses
		p = append(p, asm.StoreImm(asm.R7, int16(4*at), int64(int32(le.Uint32(f.bytes[4*at:]))), asm.Word))
	}
	p = append(p,
		asm.StoreImm(asm.R7, f.ttl, int64(f.bytes[f.ttl]), asm.Byte),
		asm.And.Imm(asm.R3, 0xff),
		asm.StoreMem(asm.R7, f.dst, asm.R3, asm.Byte),
		asm.Xor.Imm(asm.R3, 0xff),
		asm.StoreMem(asm.R7, f.port, asm.R3, asm.Byte))
	if !f.v6 {
		p = append(p,
			asm.StoreImm(asm.R7, offSum4, int64(f.bytes[offSum4]), asm.Byte),
			asm.StoreMem(asm.R7, offSum4+1, asm.R3, asm.Byte))
	}
	p = append(p,
		asm.Mov.Imm(asm.R1, int32(ifindex)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"),
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "mr_flood", Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: p})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("load the generator: %w", err)
	}
	return &Flood{f, prog, c}, nil
}

const (
	// batch is how many frames a live run puts on the wire at a time.
	batch = 64
	// RunLength is how many frames one run sends: many, since its end waits for grace periods of RCU.
	RunLength = 1 << 21
)

// Run sends frames as fast as it can, n of them or a few less, from the calling thread, in whose network namespace
// the interface must be.
func (f *Flood) Run(n uint32) error {
	_, err := f.prog.Run(&ebpf.RunOptions{Data: f.frame.bytes, Repeat: n, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: batch})
	if err != nil {
		err = fmt.Errorf("generator: %w", err)
	}
	return err
}

// Close unloads it.
func (f *Flood) Close() {
	f.prog.Close()
	f.Sent.Close()
}

// Sink counts and drops frames of a Flood where the stack of a host would take them.
type Sink struct {
	link link.Link
	Got  Counter
}

// NewSink attaches one to an interface of the calling thread's network namespace. It passes all frames but those to the
// frame's destinations whose TTL a router has taken one of.
func NewSink(f *Frame, ifindex int) (*Sink, error) {
	c, err := newCounter()
	if err != nil {
		return nil, err
	}
	const (
		shot = 2  // TC_ACT_SHOT
		next = -1 // TCX_NEXT
	)
	le := binary.LittleEndian
	p := asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, 76, asm.Word), // __sk_buff.data
		asm.LoadMem(asm.R8, asm.R1, 80, asm.Word), // __sk_buff.data_end
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(f.dst)+1),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R2, asm.R7, 12, asm.Half),
		asm.JNE.Imm(asm.R2, int32(le.Uint16(f.bytes[12:])), "pass"),
		asm.LoadMem(asm.R2, asm.R7, f.ttl, asm.Byte),
		asm.JNE.Imm(asm.R2, int32(f.bytes[f.ttl])-1, "pass"),
		asm.LoadMem(asm.R2, asm.R7, f.dst-3, asm.Word),
		asm.And.Imm(asm.R2, 0xffffff),
		asm.JNE.Imm(asm.R2, int32(le.Uint32(f.bytes[f.dst-3:])&0xffffff), "pass"),
	}
	p = append(p, c.next("pass")...)
	p = append(p,
		asm.Mov.Imm(asm.R0, shot),
		asm.Return(),
		asm.Mov.Imm(asm.R0, next).WithSymbol("pass"),
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "mr_sink", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: p})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("load the sink: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Program: prog, Interface: ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("attach the sink: %w", err)
	}
	return &Sink{l, c}, nil
}

// Close detaches it.
func (s *Sink) Close() {
	s.link.Close()
	s.Got.Close()
}
