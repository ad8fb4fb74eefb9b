package afpacket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

const (
	tcxNext    = -1 // TCX_NEXT
	tcxDrop    = 2  // TCX_DROP
	noPrealloc = 1  // BPF_F_NO_PREALLOC
	maxAddrs   = 16384
	maxTypes   = 64
)

// dropper keeps transit traffic from the kernel.
type dropper struct {
	port  *ebpf.Map // [0] = the port's MAC in 8 bytes
	v4    *ebpf.Map // the box's addresses
	v6    *ebpf.Map
	types *ebpf.Map // EtherTypes for Millrace beside IP, as they lie in a frame
	prog  *ebpf.Program
	link  link.Link
}

// newDropper loads the program, or with whole one that leaves nothing to the kernel. The errors of kernels that cannot run it wrap ErrNotSupported.
func newDropper(whole bool) (d *dropper, err error) {
	rlimit.RemoveMemlock() // older kernels count BPF memory there; they say so below
	d = &dropper{}
	for _, s := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&d.port, ebpf.MapSpec{Name: "mr_port", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}},
		{&d.v4, ebpf.MapSpec{Name: "mr_local4", Type: ebpf.Hash, KeySize: 4, ValueSize: 1, MaxEntries: maxAddrs, Flags: noPrealloc}},
		{&d.v6, ebpf.MapSpec{Name: "mr_local6", Type: ebpf.Hash, KeySize: 16, ValueSize: 1, MaxEntries: maxAddrs, Flags: noPrealloc}},
		{&d.types, ebpf.MapSpec{Name: "mr_types", Type: ebpf.Hash, KeySize: 4, ValueSize: 1, MaxEntries: maxTypes, Flags: noPrealloc}},
	} {
		if *s.to, err = ebpf.NewMap(&s.spec); err != nil {
			d.close()
			return nil, fmt.Errorf("%w: make BPF map %s: %w", pmd.ErrNotSupported, s.spec.Name, err)
		}
	}
	code := asm.Instructions{asm.Mov.Imm(asm.R0, tcxDrop), asm.Return()}
	if !whole {
		code = d.program()
	}
	d.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "millrace_tcx", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: code,
	})
	if err != nil {
		d.close()
		return nil, fmt.Errorf("%w: load tcx program: %w", pmd.ErrNotSupported, err)
	}
	return d, nil
}

// attach moves the program to the interface, before all others there. It works in
// the calling thread's network namespace.
func (d *dropper) attach(ifindex int) error {
	if d.link != nil {
		d.link.Close()
		d.link = nil
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: d.prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attach tcx program: %w", err)
	}
	d.link = l
	return nil
}

func (d *dropper) close() {
	if d.link != nil {
		d.link.Close()
	}
	if d.prog != nil {
		d.prog.Close()
	}
	for _, m := range []*ebpf.Map{d.port, d.v4, d.v6, d.types} {
		if m != nil {
			m.Close()
		}
	}
}

// set makes the program judge as a filter of the same arguments does. What stays
// is never missing in between.
func (d *dropper) set(mac pmd.MAC, local []netip.Addr, types []uint16) error {
	var v [8]byte
	copy(v[:], mac[:])
	if err := d.port.Put(uint32(0), v); err != nil {
		return fmt.Errorf("set MAC of the tcx program: %w", err)
	}
	v4, v6, et := map[[4]byte]bool{}, map[[16]byte]bool{}, map[uint32]bool{}
	for _, a := range local {
		if a = a.Unmap(); a.Is4() {
			v4[a.As4()] = true
		} else {
			v6[a.As16()] = true
		}
	}
	for _, t := range types {
		et[uint32(be(t))] = true
	}
	if err := replace(d.v4, v4); err != nil {
		return fmt.Errorf("local IPv4 addresses: %w", err)
	}
	if err := replace(d.v6, v6); err != nil {
		return fmt.Errorf("local IPv6 addresses: %w", err)
	}
	if err := replace(d.types, et); err != nil {
		return fmt.Errorf("EtherTypes: %w", err)
	}
	return nil
}

// replace makes want the keys of m.
func replace[K comparable](m *ebpf.Map, want map[K]bool) error {
	if len(want) > int(m.MaxEntries()) {
		return fmt.Errorf("%d are more than the filter's %d", len(want), m.MaxEntries())
	}
	var k K
	var v uint8
	var old []K
	for it := m.Iterate(); it.Next(&k, &v); {
		if !want[k] {
			old = append(old, k)
		}
	}
	put := func() (err error) {
		for k := range want {
			if err = m.Put(k, uint8(1)); err != nil {
				return err
			}
		}
		return nil
	}
	err := put()
	for _, k := range old {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	if err != nil { // the old ones took the room
		err = put()
	}
	return err
}

// be is the value that a BPF load finds where the big-endian v lies.
func be(v uint16) int32 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return int32(binary.NativeEndian.Uint16(b[:]))
}

// Places on the program's stack.
const (
	stEth  = -16 // Ethernet header
	stTag  = -8  // what follows a tag's EtherType, over the Ethernet header's end
	stIP   = -64 // IP header
	stTmp  = -72
	stKey  = -4
	stDst4 = stIP + 16
	stDst6 = stIP + 24
)

// load copies n bytes from offset R7+off of the packet to the stack, and goes to
// fail where the packet is shorter.
func load(off, to, n int32, fail string) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, off),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, to),
		asm.Mov.Imm(asm.R4, n),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, fail),
	}
}

// lookup finds the key at that place of the stack; R0 is 0 where there is none.
func lookup(m *ebpf.Map, key int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
	}
}

// at names the first of some instructions.
func at(name string, p asm.Instructions) asm.Instructions {
	p[0] = p[0].WithSymbol(name)
	return p
}

// notMAC goes to no where the 6 bytes at that place of the stack are not the port's MAC.
func (d *dropper) notMAC(place int16, no string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapValue(asm.R3, d.port.FD(), 0),
		asm.LoadMem(asm.R4, asm.RFP, place, asm.Word),
		asm.LoadMem(asm.R5, asm.R3, 0, asm.Word),
		asm.JNE.Reg(asm.R4, asm.R5, no),
		asm.LoadMem(asm.R4, asm.RFP, place+4, asm.Half),
		asm.LoadMem(asm.R5, asm.R3, 4, asm.Half),
		asm.JNE.Reg(asm.R4, asm.R5, no),
	}
}

// program is filter.host for the kernel. Registers: R6 context, R7 offset of the L3
// header, R8 EtherType.
func (d *dropper) program() asm.Instructions {
	var p asm.Instructions
	add := func(is ...asm.Instruction) { p = append(p, is...) }
	add(asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R7, 0))
	add(load(0, stEth, 14, "pass")...)
	add(d.notMAC(stEth, "pass")...)
	add(asm.Mov.Imm(asm.R7, 14), asm.LoadMem(asm.R8, asm.RFP, stEth+12, asm.Half))
	for i := range 2 {
		tag := fmt.Sprintf("tag%d", i)
		add(asm.JEq.Imm(asm.R8, be(unix.ETH_P_8021Q), tag), asm.JNE.Imm(asm.R8, be(unix.ETH_P_8021AD), "l3"))
		add(at(tag, load(0, stTag, 4, "pass"))...)
		add(asm.Add.Imm(asm.R7, 4), asm.LoadMem(asm.R8, asm.RFP, stTag+2, asm.Half))
	}
	add(asm.JEq.Imm(asm.R8, be(unix.ETH_P_IP), "ip4").WithSymbol("l3"))
	add(asm.JEq.Imm(asm.R8, be(unix.ETH_P_IPV6), "ip6"))
	add(asm.StoreMem(asm.RFP, stKey, asm.R8, asm.Word))
	add(lookup(d.types, stKey)...)
	add(asm.JEq.Imm(asm.R0, 0, "pass"), asm.Ja.Label("drop"))

	add(at("ip4", load(0, stIP, packet.IPv4Size, "pass"))...)
	add(
		asm.LoadMem(asm.R2, asm.RFP, stDst4, asm.Byte),
		asm.And.Imm(asm.R2, 0xf0),
		asm.JEq.Imm(asm.R2, 0xe0, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stDst4, asm.Word),
		asm.JEq.Imm32(asm.R2, -1, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stIP+9, asm.Byte),
		asm.JNE.Imm(asm.R2, packet.ProtoUDP, "look4"),
		asm.LoadMem(asm.R2, asm.RFP, stIP, asm.Byte),
		asm.JNE.Imm(asm.R2, 0x45, "look4"))
	add(load(22, stTmp, 2, "look4")...)
	add(asm.LoadMem(asm.R2, asm.RFP, stTmp, asm.Half), asm.JNE.Imm(asm.R2, be(68), "look4"))
	add(load(56, stTmp, 6, "look4")...)
	add(d.notMAC(stTmp, "look4")...)
	add(asm.Ja.Label("pass"))
	add(at("look4", lookup(d.v4, stDst4))...)
	add(asm.JNE.Imm(asm.R0, 0, "pass"), asm.Ja.Label("drop"))

	add(at("ip6", load(0, stIP, packet.IPv6Size, "pass"))...)
	add(
		asm.LoadMem(asm.R2, asm.RFP, stDst6, asm.Byte),
		asm.JEq.Imm(asm.R2, 0xff, "pass"),
		asm.JNE.Imm(asm.R2, 0xfe, "icmp6"),
		asm.LoadMem(asm.R2, asm.RFP, stDst6+1, asm.Byte),
		asm.And.Imm(asm.R2, 0xc0),
		asm.JEq.Imm(asm.R2, 0x80, "pass"),
		asm.LoadMem(asm.R2, asm.RFP, stIP+6, asm.Byte).WithSymbol("icmp6"),
		asm.JNE.Imm(asm.R2, packet.ProtoICMPv6, "look6"))
	add(load(packet.IPv6Size, stTmp, 1, "look6")...)
	add(
		asm.LoadMem(asm.R2, asm.RFP, stTmp, asm.Byte),
		asm.JLT.Imm(asm.R2, 133, "look6"),
		asm.JLE.Imm(asm.R2, 137, "pass"))
	add(at("look6", lookup(d.v6, stDst6))...)
	add(asm.JNE.Imm(asm.R0, 0, "pass"))

	return append(p,
		asm.Mov.Imm(asm.R0, tcxDrop).WithSymbol("drop"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
		asm.Return())
}
