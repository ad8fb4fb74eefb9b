// Package memif is the driver "memif": shared-memory interfaces of version 2.0, in both
// roles, for VPP, DPDK's net_memif, containers and other processes of Millrace.
//
// The server listens on a UNIX socket. The client allocates memory, hands it over
// the socket, and both sides exchange packets through rings in it:
//
//	region 0: | ring C2S 0 | ... | ring S2C 0 | ... | buffers ... |
//	ring:     | cookie, flags, head | tail | descriptor 0 | descriptor 1 | ...
//	           64 bytes              64     16 each
//
// The client writes every head, the server every tail. In a ring from client to server
// (C2S) the client fills buffers and moves head, the server reads them and moves
// tail. In a ring from server to client (S2C) the client offers empty buffers by head and
// the server fills them and moves tail. All numbers are in the machine's byte order.
// The specification is the header memif.h of VPP, DPDK and libmemif; master
// and slave are its older words for server and client.
//
// # Trust
//
// The peer can write anything at any time into the shared memory. Each
// descriptor is read once and checked before it is used; a region is mapped only
// where it is sealed against shrinking. A peer that breaks the rules is counted
// (Stats.RxBad), told why and disconnected. What remains: a peer may change bytes of
// a packet while they are copied, and one that gives an eventfd in blocking mode with a full
// counter can stall the thread that wakes it; memory in huge pages, which only a
// privileged peer has, can be made to fail by punching holes into it.
//
// # Threads
//
// One goroutine a port makes connections and watches the socket. It publishes a
// connection by one pointer in each queue; the queue's thread takes it up in its next
// Rx or Tx and says so in another pointer (a hazard pointer), and the memory of an old
// connection is unmapped when no queue points to it. Packets that a peer left behind in good
// order are still received.
//
// # Memory order
//
// Head and tail are 16 bits wide, and Go has no atomics of that size. They are
// accessed through the aligned 32-bit words that hold them: head lies above flags in
// its word and is moved by an atomic add of n<<16, which leaves flags alone; tail is alone in
// its word, which is stored. Both are full barriers in Go, on amd64 and arm64, so
// that descriptors and data are visible before them, and flags are read after them.
package memif
