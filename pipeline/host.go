package pipeline

import (
	"millrace/ip/host"
	"millrace/pipeline/graph"
)

var xHostMissed = graph.NewReason(graph.ReasonInfo{Stage: "host", Name: "not-filtered",
	Doc: "A packet for the host came past the kernel's filter, most likely in the moment in which an address was added. The next one reaches the kernel."})

var xHostSelf = graph.NewReason(graph.ReasonInfo{Stage: "host", Name: "to-itself",
	Doc: "A packet that the router made, such as an ICMP error, was for the router itself: what it answers had a forged source address."})

// HostExit hands packets for the host to who owns the interface: the kernel by the port's
// TAP, the kernel that has seen the packet itself, or the built-in host.
var HostExit = &graph.Stage{
	Name: "host", Doc: "hand local packets to the kernel or to the built-in host",
	Reasons: []graph.Reason{xHostMissed, xHostSelf},
	New: func(w *graph.Worker) graph.Runner {
		h := &hostExit{w: w}
		h.builtin, _ = w.Instances[host.Name].(graph.Taker)
		return h
	},
}

type hostExit struct {
	w       *graph.Worker
	builtin graph.Taker
}

func (h *hostExit) Run(*graph.Vector) {}

func (h *hostExit) Take(v *graph.Vector, pos []uint8, why graph.Reason) {
	w, t := h.w, h.w.Tables
	for k, i := range pos {
		ifc := &t.Ifaces[v.In[i]&(graph.MaxIfaces-1)]
		switch tap := t.Taps[ifc.Port&(graph.MaxPorts-1)]; {
		case v.In[i] == 0 || v.L3Off(i) == 0: // made here, so without a frame
			w.Discard(v.Idx[i], xHostSelf)
		case tap != 0:
			w.Send(tap, v.Idx[i])
		case ifc.Flags&graph.IfSeesAll != 0:
			w.C.ToHost++
			w.Cache.Free(v.Idx[i : int(i)+1])
		case ifc.Flags&graph.IfKernel != 0 || h.builtin == nil:
			w.Discard(v.Idx[i], xHostMissed)
		default:
			h.builtin.Take(v, pos[k:k+1], why)
		}
	}
}
