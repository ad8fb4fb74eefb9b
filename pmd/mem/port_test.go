package mem_test

import (
	"testing"

	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/mem"
	"millrace/pmd/porttest"
)

func TestPort(t *testing.T) {
	for _, o := range []mem.Options{{}, {Queues: 3, Ring: 256}} {
		porttest.Run(t, porttest.Pair{Open: func(t testing.TB, pool *packet.Pool) (pmd.Port, pmd.Port) {
			a, b := mem.Pair("a", "b", o)
			return a, b
		}})
	}
}
