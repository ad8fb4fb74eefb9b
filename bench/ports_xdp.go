package bench

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"millrace/packet"
)

// counter is a per-CPU counter of a BPF program.
type counter struct{ *ebpf.Map }

func newCounter() (counter, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "mr_bench", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		err = fmt.Errorf("make BPF map: %w", err)
	}
	return counter{m}, err
}

func (c counter) read() (sum uint64, err error) {
	var v []uint64
	err = c.Lookup(uint32(0), &v)
	for _, n := range v {
		sum += n
	}
	return sum, err
}

// next makes R3 the counter's value after it was counted up; it uses R0 to R5.
func (c counter) next(fail string) asm.Instructions {
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

	offTTL, offSum, offDst, offPort = 14 + 8, 14 + 10, 14 + 16, 34
)

// generated is the generator's frame number 0. The checksum's low byte is 0xff, so that
// the n-th destination of 256 has the checksum of the first less n, without a borrow.
func generated(router [6]byte, size int) []byte {
	f := ether4(router, size, 0xc0000202, 0xc6120000)
	h := packet.IPv4(f[14:34])
	for id := uint16(1); f[offSum+1] != 0xff; id++ {
		h.SetID(id)
		h.SetSum()
	}
	binary.BigEndian.PutUint16(f[38:], uint16(size-34)) // UDP length, no checksum
	return f
}

// generator is an XDP program for live test runs: frames go round, so it restores what a
// router changes, gives each of 256 destinations and source ports its turn, and
// transmits by an interface.
func generator(frame []byte, ifindex int) (*ebpf.Program, counter, error) {
	c, err := newCounter()
	if err != nil {
		return nil, c, err
	}
	le := binary.LittleEndian
	p := asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, 0, asm.Word), // xdp_md.data
		asm.LoadMem(asm.R8, asm.R1, 4, asm.Word), // xdp_md.data_end
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(len(frame))),
		asm.JGT.Reg(asm.R2, asm.R8, "drop"),
	}
	p = append(p, c.next("drop")...)
	for at := range 3 { // MAC addresses
		p = append(p, asm.StoreImm(asm.R7, int16(4*at), int64(int32(le.Uint32(frame[4*at:]))), asm.Word))
	}
	p = append(p,
		asm.StoreImm(asm.R7, offTTL, int64(frame[offTTL]), asm.Byte),
		asm.StoreImm(asm.R7, offSum, int64(frame[offSum]), asm.Byte),
		asm.And.Imm(asm.R3, 0xff),
		asm.StoreMem(asm.R7, offDst+3, asm.R3, asm.Byte),
		asm.StoreMem(asm.R7, offPort+1, asm.R3, asm.Byte),
		asm.Xor.Imm(asm.R3, 0xff),
		asm.StoreMem(asm.R7, offSum+1, asm.R3, asm.Byte),
		asm.Mov.Imm(asm.R1, int32(ifindex)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"),
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "mr_gen", Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: p})
	if err != nil {
		c.Close()
		return nil, c, fmt.Errorf("load the generator: %w", err)
	}
	return prog, c, nil
}

// attachSink attaches a program that counts and drops the generator's packets where the stack of a
// host would take them, and passes all others. It looks at the destination,
// 198.18.0.0/24, and the TTL, of which a router has taken one.
func attachSink(frame []byte, ifindex int) (link.Link, counter, error) {
	c, err := newCounter()
	if err != nil {
		return nil, c, err
	}
	const (
		shot = 2  // TC_ACT_SHOT
		next = -1 // TCX_NEXT
	)
	dst := binary.LittleEndian.Uint32(frame[offDst:]) & 0xffffff
	p := asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, 76, asm.Word), // __sk_buff.data
		asm.LoadMem(asm.R8, asm.R1, 80, asm.Word), // __sk_buff.data_end
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, offDst+4),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R2, asm.R7, 12, asm.Half),
		asm.JNE.Imm(asm.R2, 8, "pass"), // IPv4
		asm.LoadMem(asm.R2, asm.R7, offTTL, asm.Byte),
		asm.JNE.Imm(asm.R2, int32(frame[offTTL])-1, "pass"),
		asm.LoadMem(asm.R2, asm.R7, offDst, asm.Word),
		asm.And.Imm(asm.R2, 0xffffff),
		asm.JNE.Imm(asm.R2, int32(dst), "pass"),
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
		return nil, c, fmt.Errorf("load the sink: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Program: prog, Interface: ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		c.Close()
		return nil, c, fmt.Errorf("attach the sink: %w", err)
	}
	return l, c, nil
}

// batch is how many frames a live run puts on the wire at a time.
const batch = 64

// liveRun is how many frames one live run sends: many, since its end waits for grace periods of RCU.
const liveRun = 1 << 21

// generate sends frames as fast as it can, n of them or a few less.
func generate(p *ebpf.Program, frame []byte, n uint32) error {
	_, err := p.Run(&ebpf.RunOptions{Data: frame, Repeat: n, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: batch})
	return err
}
