package pipeline

import (
	"fmt"

	"millrace/pipeline/graph"
)

// What trace says of the pipeline's own stages.

func traceClassify(t *graph.Look) string {
	v, i := t.Vector, t.Pos
	return fmt.Sprintf("IPv%d header at byte %d, on interface %s", *(*uint8)(v.Header(i))>>4, v.L3Off(i), ifaceName(t.Worker.Tables, v.In[i]))
}

func traceRewrite(t *graph.Look) string {
	v, i := t.Vector, t.Pos
	a := &t.Worker.Tables.Adjs[v.Adj[i]]
	return fmt.Sprintf("TTL decremented, new Ethernet header; sent by %s", ifaceName(t.Worker.Tables, a.Iface))
}

func ifaceName(t *graph.Tables, iface uint16) string {
	if n, ok := (*t.Names.Load())[iface]; ok {
		return n
	}
	return fmt.Sprintf("#%d", iface)
}
