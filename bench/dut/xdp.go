package dut

import (
	"context"
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// linkDrops adds the drops of the calling thread's namespace's r0 and r1.
func linkDrops(m map[string]uint64) error {
	for _, name := range portNames {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		s := l.Attrs().Statistics
		for k, v := range map[string]uint64{"rx_dropped": s.RxDropped, "tx_dropped": s.TxDropped, "rx_missed": s.RxMissedErrors, "rx_errors": s.RxErrors, "tx_errors": s.TxErrors} {
			if v > 0 {
				m[name+"/"+k] = v
			}
		}
	}
	return nil
}

func openXDP(ctx context.Context, o Options) (d *DUT, err error) {
	d = &DUT{CPU: o.CPU}
	defer d.undo(&err)
	n, err := veths(d, true)
	if err != nil {
		return nil, err
	}
	// bpf_fib_lookup answers only where the kernel forwards.
	if err := n.Router.Do(append([]string{"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"}, o.Setup...)...); err != nil {
		return nil, err
	}
	prog, err := fibForward()
	if err != nil {
		return nil, err
	}
	d.onClose(func() { prog.Close() })
	for _, dev := range portNames {
		var l link.Link
		err := n.Router.In(func() error {
			i, err := net.InterfaceByName(dev)
			if err == nil {
				l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: i.Index, Flags: link.XDPDriverMode})
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("attach the XDP program to %s: %w", dev, err)
		}
		d.onClose(func() { l.Close() })
	}
	d.drops = devDrops(n)
	return d, polled(ctx, n, o.CPU)
}

// fibForward is an XDP program that forwards IPv4 without options and IPv6 by the kernel's routes and neighbours
// (bpf_fib_lookup), and passes all else to the kernel.
func fibForward() (*ebpf.Program, error) {
	const (
		xdpPass = 2
		// struct bpf_fib_lookup, 64 bytes, at the bottom of the stack.
		fib                         = -64
		family, l4, totLen, ifindex = fib, fib + 1, fib + 6, fib + 8
		src, dst                    = fib + 16, fib + 32
		smac, dmac                  = fib + 52, fib + 58
		afInet, afInet6             = 2, 10
	)
	p := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), // data
		asm.LoadMem(asm.R8, asm.R6, 4, asm.Word), // data_end
	}
	p = append(p, asm.Mov.Imm(asm.R3, 0))
	for o := int16(0); o < 64; o += 8 {
		p = append(p, asm.StoreMem(asm.RFP, fib+o, asm.R3, asm.DWord))
	}
	p = append(p,
		asm.LoadMem(asm.R2, asm.R6, 12, asm.Word), // ingress_ifindex
		asm.StoreMem(asm.RFP, ifindex, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, 34),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R3, asm.R7, 12, asm.Half),
		asm.JEq.Imm(asm.R3, 0xdd86, "six"),
		asm.JNE.Imm(asm.R3, 0x0008, "pass"),
		asm.LoadMem(asm.R3, asm.R7, 14, asm.Byte),
		asm.JNE.Imm(asm.R3, 0x45, "pass"),
		asm.LoadMem(asm.R3, asm.R7, 22, asm.Byte), // TTL
		asm.JLE.Imm(asm.R3, 1, "pass"),
		asm.StoreImm(asm.RFP, family, afInet, asm.Byte),
		asm.LoadMem(asm.R3, asm.R7, 23, asm.Byte),
		asm.StoreMem(asm.RFP, l4, asm.R3, asm.Byte),
		asm.LoadMem(asm.R3, asm.R7, 16, asm.Half),
		asm.HostTo(asm.BE, asm.R3, asm.Half),
		asm.StoreMem(asm.RFP, totLen, asm.R3, asm.Half),
		asm.LoadMem(asm.R3, asm.R7, 26, asm.Word),
		asm.StoreMem(asm.RFP, src, asm.R3, asm.Word),
		asm.LoadMem(asm.R3, asm.R7, 30, asm.Word),
		asm.StoreMem(asm.RFP, dst, asm.R3, asm.Word),
		asm.Mov.Imm(asm.R9, 4),
		asm.Ja.Label("lookup"),

		asm.Mov.Reg(asm.R2, asm.R7).WithSymbol("six"),
		asm.Add.Imm(asm.R2, 54),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R3, asm.R7, 21, asm.Byte), // hop limit
		asm.JLE.Imm(asm.R3, 1, "pass"),
		asm.StoreImm(asm.RFP, family, afInet6, asm.Byte),
		asm.LoadMem(asm.R3, asm.R7, 20, asm.Byte),
		asm.StoreMem(asm.RFP, l4, asm.R3, asm.Byte),
		asm.LoadMem(asm.R3, asm.R7, 18, asm.Half),
		asm.HostTo(asm.BE, asm.R3, asm.Half),
		asm.StoreMem(asm.RFP, totLen, asm.R3, asm.Half),
	)
	for o := int16(0); o < 16; o += 4 {
		p = append(p,
			asm.LoadMem(asm.R3, asm.R7, 22+o, asm.Word), asm.StoreMem(asm.RFP, src+o, asm.R3, asm.Word),
			asm.LoadMem(asm.R3, asm.R7, 38+o, asm.Word), asm.StoreMem(asm.RFP, dst+o, asm.R3, asm.Word))
	}
	p = append(p,
		asm.Mov.Imm(asm.R9, 6),

		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("lookup"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, fib),
		asm.Mov.Imm(asm.R3, 64),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnFibLookup.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R8, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, 34),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.JEq.Imm(asm.R9, 6, "hops"),
		asm.LoadMem(asm.R3, asm.R7, 22, asm.Byte),
		asm.Sub.Imm(asm.R3, 1),
		asm.StoreMem(asm.R7, 22, asm.R3, asm.Byte),
		asm.LoadMem(asm.R3, asm.R7, 24, asm.Half), // checksum: one less in the word with the TTL (RFC 1141)
		asm.Add.Imm(asm.R3, 1),
		asm.Mov.Reg(asm.R4, asm.R3),
		asm.RSh.Imm(asm.R4, 16),
		asm.Add.Reg(asm.R3, asm.R4),
		asm.StoreMem(asm.R7, 24, asm.R3, asm.Half),
		asm.Ja.Label("macs"),
		asm.LoadMem(asm.R3, asm.R7, 21, asm.Byte).WithSymbol("hops"),
		asm.Sub.Imm(asm.R3, 1),
		asm.StoreMem(asm.R7, 21, asm.R3, asm.Byte),

		asm.LoadMem(asm.R3, asm.RFP, dmac, asm.Half).WithSymbol("macs"),
		asm.StoreMem(asm.R7, 0, asm.R3, asm.Half),
		asm.LoadMem(asm.R3, asm.RFP, dmac+2, asm.Half),
		asm.StoreMem(asm.R7, 2, asm.R3, asm.Half),
		asm.LoadMem(asm.R3, asm.RFP, dmac+4, asm.Half),
		asm.StoreMem(asm.R7, 4, asm.R3, asm.Half),
		asm.LoadMem(asm.R3, asm.RFP, smac, asm.Half),
		asm.StoreMem(asm.R7, 6, asm.R3, asm.Half),
		asm.LoadMem(asm.R3, asm.RFP, smac+2, asm.Half),
		asm.StoreMem(asm.R7, 8, asm.R3, asm.Half),
		asm.LoadMem(asm.R3, asm.RFP, smac+4, asm.Half),
		asm.StoreMem(asm.R7, 10, asm.R3, asm.Half),
		asm.LoadMem(asm.R1, asm.RFP, ifindex, asm.Word),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "mr_fwd", Type: ebpf.XDP, License: "GPL", Instructions: p})
	if err != nil {
		return nil, fmt.Errorf("load the XDP program: %w", err)
	}
	return prog, nil
}
