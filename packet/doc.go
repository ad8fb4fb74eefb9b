// Package packet is what a packet is made of: buffers and their pools, views of
// headers, flow keys and hashes, checksums.
//
// # Buffers
//
// A buffer is an Mbuf header with headroom and data behind it, in memory outside
// the Go heap (package mem). Everything that moves packets moves uint32 indices:
// the buffer's distance from one base address of the process, in units of 64
// bytes. At(i) is the header. An index is a plain number, so vectors and rings of
// packets are free of pointers and cost the garbage collector nothing.
//
// # Ownership
//
// A packet (a chain of segments) has one owner at a time: whoever holds the index
// of its first segment. Handing the index on hands over the packet; Cache.Free ends
// it. Bytes of a segment with more than one owner (Mbuf.Shared) may only be read.
//
// # Concurrency
//
// A Cache belongs to one thread. A Pool serves any number of caches: they exchange
// blocks of indices with it through a lock-free stack. Reference counts are
// changed atomically once they may exceed one.
package packet
