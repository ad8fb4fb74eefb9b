package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"millrace/control/rule"
)

// linux/fib_rules.h
const (
	sizeofRuleHdr = 12
	ruleInvert    = 2
	fraDSCP       = 25
	fraFlow       = 26
	fraFlowMask   = 27
	fraSPortMask  = 28
	fraDPortMask  = 29
	fraDSCPMask   = 30
)

// tosMask4 are the bits of the TOS byte that IPv4's rules compare where they name a TOS and not a DSCP.
const tosMask4 = 0x1c

var ruleActions = map[uint8]rule.Action{unix.FR_ACT_TO_TBL: rule.Lookup, unix.FR_ACT_GOTO: rule.Goto, unix.FR_ACT_NOP: rule.Nop,
	unix.FR_ACT_BLACKHOLE: rule.Blackhole, unix.FR_ACT_UNREACHABLE: rule.Unreachable, unix.FR_ACT_PROHIBIT: rule.Prohibit}

// parseRule reads a fib_rule_hdr; ok is false for the rules of other families, such as multicast routing's. What is not known of a rule stands
// in its Unknown.
func parseRule(b []byte) (r rule.Rule, ok bool) {
	if len(b) < sizeofRuleHdr {
		return r, false
	}
	r.SuppressBits, r.SuppressGroup = -1, -1
	switch b[0] {
	case unix.AF_INET:
		r.Family = 4
	case unix.AF_INET6:
		r.Family = 6
	default:
		return r, false
	}
	odd := func(format string, a ...any) {
		if r.Unknown != "" {
			r.Unknown += ", "
		}
		r.Unknown += fmt.Sprintf(format, a...)
	}
	r.Not = native.Uint32(b[8:])&ruleInvert != 0
	if tos := b[3]; tos != 0 {
		r.TOS, r.TOSMask = tos, 0xfc
		if r.Family == 4 {
			r.TOSMask = tosMask4
		}
	}
	r.Table = uint32(b[4])
	a, known := ruleActions[b[7]]
	if r.Action = a; !known {
		r.Action = rule.Nop
		odd("action %d", b[7])
	}
	marked, masked := false, false
	for t, v := range attrs(b[sizeofRuleHdr:]) {
		switch t {
		case unix.FRA_DST:
			r.To = netip.PrefixFrom(ipAddr(v), int(b[1]))
		case unix.FRA_SRC:
			r.From = netip.PrefixFrom(ipAddr(v), int(b[2]))
		case unix.FRA_IIFNAME:
			r.IIF = text(v)
		case unix.FRA_OIFNAME:
			r.OIF = text(v)
		case unix.FRA_GOTO:
			r.Goto = u32(v)
		case unix.FRA_PRIORITY:
			r.Pref = u32(v)
		case unix.FRA_FWMARK:
			r.Mark, marked = u32(v), true
		case unix.FRA_FWMASK:
			r.Mask, masked = u32(v), true
		case unix.FRA_TUN_ID:
			if len(v) == 8 {
				r.TunID = binary.BigEndian.Uint64(v)
			}
		case unix.FRA_SUPPRESS_IFGROUP:
			r.SuppressGroup = int(int32(u32(v)))
		case unix.FRA_SUPPRESS_PREFIXLEN:
			r.SuppressBits = int(int32(u32(v)))
		case unix.FRA_TABLE:
			r.Table = u32(v)
		case unix.FRA_L3MDEV:
			r.L3mdev = len(v) != 0 && v[0] != 0
		case unix.FRA_UID_RANGE:
			if len(v) == 8 {
				r.UID, r.UIDLo, r.UIDHi = true, u32(v), u32(v[4:])
			}
		case unix.FRA_PROTOCOL:
			if len(v) != 0 {
				r.Protocol = v[0]
			}
		case unix.FRA_IP_PROTO:
			if len(v) != 0 {
				r.Proto = v[0]
			}
		case unix.FRA_SPORT_RANGE:
			r.SPorts = portRange(v)
		case unix.FRA_DPORT_RANGE:
			r.DPorts = portRange(v)
		case fraDSCP:
			if len(v) != 0 {
				r.TOS = v[0] << 2
				if r.TOSMask == 0 {
					r.TOSMask = 0xfc
				}
			}
		case fraDSCPMask:
			if len(v) != 0 {
				r.TOSMask = v[0] << 2
			}
		case fraSPortMask, fraDPortMask:
			if len(v) >= 2 && native.Uint16(v) != 0xffff {
				odd("port mask %#x", native.Uint16(v))
			}
		case fraFlow, fraFlowMask:
			odd("flow label")
		case unix.FRA_FLOW, unix.FRA_PAD: // realms are about statistics
		default:
			odd("attribute %d", t)
		}
	}
	if marked && !masked {
		r.Mask = ^uint32(0)
	}
	if r.Action != rule.Lookup || r.L3mdev {
		r.Table = 0
	}
	if r.To.Bits() < 0 {
		r.To = netip.Prefix{}
	}
	if r.From.Bits() < 0 {
		r.From = netip.Prefix{}
	}
	return r, true
}

func portRange(v []byte) rule.Ports {
	if len(v) < 4 {
		return rule.Ports{}
	}
	return rule.Ports{Lo: native.Uint16(v), Hi: native.Uint16(v[2:])}
}
