package pipeline

import (
	"fmt"
	"unsafe" // headers of the packet that a trace looks at, before it leaves

	"millrace/pipeline/graph"
	"millrace/pmd"
)

// What trace says of the pipeline's own stages.

func traceClassify(t *graph.Look) string {
	v, i := t.Vector, t.Pos
	return fmt.Sprintf("IPv%d header at byte %d, on interface %s", *(*uint8)(v.Header(i))>>4, v.L3Off(i), ifaceName(t.Worker.Tables, v.In[i]))
}

func traceRewrite(t *graph.Look) string {
	v, i := t.Vector, t.Pos
	p := v.Header(i)
	at := uintptr(8)
	if *(*uint8)(p)>>4 == 6 {
		at = 7
	}
	return fmt.Sprintf("TTL now %d; Ethernet header to %s", *(*uint8)(unsafe.Add(p, at)), pmd.MAC(v.Mbuf(i).Bytes()[:6]))
}

func traceTransmit(t *graph.Look) string {
	a := &t.Worker.Tables.Adjs[t.Vector.Adj[t.Pos]]
	return "sent by " + ifaceName(t.Worker.Tables, a.Iface)
}

func ifaceName(t *graph.Tables, iface uint16) string {
	if n, ok := (*t.Names.Load())[iface]; ok {
		return n
	}
	return fmt.Sprintf("#%d", iface)
}
