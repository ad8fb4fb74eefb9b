// Package tap is the driver of TAP devices: the host's face of ports that the kernel
// cannot see. What the host sends to the device, Rx receives; what Tx sends, the host receives.
//
// The device is made by Open, with the port's name and MAC, and vanishes with
// Close, or with the process. It has no virtio header, so the kernel hands over finished
// packets, no longer than the MTU. Each queue is one descriptor of the device (IFF_MULTI_QUEUE), read
// and written by one system call a packet, into and out of chains of buffers.
package tap
