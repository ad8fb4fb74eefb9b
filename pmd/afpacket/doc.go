// Package afpacket is the driver of kernel interfaces by AF_PACKET sockets, for devices
// and kernels without AF_XDP.
//
// # Reception
//
// Each queue has a TPACKET_V2 ring, which packets are copied out of. Its slots hold the
// device's MTU; what is longer comes by the socket's own queue (PACKET_COPY_THRESH).
// PACKET_VNET_HDR tells what is unfinished about a packet: checksums that the
// sender left to hardware are computed, super-packets of segmentation offload (TCP and UDP)
// are cut into the segments that the wire would have carried, and VLAN tags that the
// kernel took off are put back. Super-packets inside tunnels are counted as RxBad: the
// socket does not say where the inner headers begin.
//
// Several queues share the packets by a symmetric hash of flows (PACKET_FANOUT).
//
// # The kernel beside the port
//
// An AF_PACKET socket gets a copy of each packet, and so the kernel would forward what
// Millrace forwards. A tcx program at the interface's ingress drops transit traffic
// from the kernel's copy, and Rx leaves out what the program lets pass, so that each packet has
// one owner. Passed to the kernel is: ARP, neighbour discovery (ICMPv6 133 to 137),
// what is addressed to the box (SetLocal), to IPv6 link-local addresses, to IP multicast
// groups, in broadcast and multicast frames and in frames to others' MAC addresses, and what is
// neither IPv4 nor IPv6; behind up to two VLAN tags. Without tcx (Linux before
// 6.6) the kernel must not forward by itself; Why says so.
//
// # Transmission
//
// sendmmsg on a second socket gathers chains and bypasses the kernel's qdiscs. Packets are copied during the call.
//
// # Privileges
//
// Open needs CAP_NET_RAW, CAP_NET_ADMIN to change the device and CAP_BPF for the program; a
// device that comes back needs them again.
//
// # Removal
//
// When the device goes away the port reports Gone and receives nothing; when an
// interface of the same name comes, the port takes it.
package afpacket
