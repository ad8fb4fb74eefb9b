// Package afxdp is the driver for kernel interfaces: AF_XDP sockets, with the packets
// in the road's own buffers.
//
// # Buffers
//
// Each queue has a socket that registers the port's packet.Pool as its UMEM, in chunks
// that start anywhere (XDP_UMEM_UNALIGNED_CHUNK_FLAG) and without UMEM headroom:
//
//	fill ring: the Mbuf's own place     the kernel leaves 256 bytes, then data
//	| Mbuf 128 | headroom 128 | data 1792 ...     | chunk of 2048 in a stride of 2112
//
// so that what one port received, another sends from where it lies. Since the data
// of a buffer may be on its way out more than once (clones), state counts for every
// buffer of the pool how often this queue's kernel side holds it. Stop closes the
// socket and takes back whatever is still counted.
//
// # Filter
//
// An XDP program decides what comes to Millrace: IPv4 and IPv6 unicast in transit,
// addressed to the port's MAC, behind up to two VLAN tags. All else goes on to the kernel as
// if nobody were there (see program).
//
// # Modes
//
// Zero-copy, native copy (the driver runs the program, the kernel copies) and generic
// copy (the kernel runs the program on sk_buffs) are tried in this order. Longer packets than a buffer
// are chains where the kernel can (XDP_USE_SG, Linux 6.6).
//
// # Unfinished checksums
//
// A virtual peer in the same kernel hands packets over whose TCP or UDP checksum its
// device would have finished (CHECKSUM_PARTIAL), which AF_XDP does not tell. On ports of such
// drivers Rx finishes them. It sees neither those of inner packets of tunnels nor
// SCTP's; for these the peer needs `ethtool -K DEV tx off`.
package afxdp
