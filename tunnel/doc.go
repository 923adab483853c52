// Package tunnel carries frames between a container's kernel and the switch.
//
// # Frames
//
// A frame is one 10-byte virtio-net header ([Header], struct virtio_net_hdr of
// linux/virtio_net.h in little-endian order) followed by one IP packet. The
// packet may be a superframe: up to 65535 bytes that stand for a run of TCP
// segments or UDP datagrams which share one header, with the transport checksum
// left for whoever splits it. Moving superframes whole is worth about ten times
// the throughput of 1500-byte packets, so every [Device] speaks in frames and
// the sender of a frame never asks whether the far side can split it: a device
// whose far side cannot does so itself.
//
// # Devices
//
//   - [Open] reads and writes a TUN descriptor by readv and writev into and from
//     the caller's buffers. It holds no buffer of its own. Its device is
//     [Watchable]: who reads many waits for all of them by epoll(7); who calls
//     ReadFrame waits on Go's poller.
//   - [OpenTAP] does the same with a TAP descriptor, see below.
//   - [Wrap] makes a Device of any wireguard tun.Device; superframes are split
//     and checksums are completed in software on the way to it.
//   - tunneltest.Pair joins two in-memory devices for tests.
//
// # Ethernet ends at the device
//
// A TAP is for containers that need a MAC address. Its Device still speaks in IP
// frames, so that the switch has one kind of link: the Ethernet header is read
// into and written from a few bytes of the device's own, between the caller's
// virtio header, whose offsets move by its 14 bytes, and the caller's packet,
// which stays where it is.
//
// The container is alone on its wire with the gateway. All its neighbours have
// the gateway's MAC address: the device answers ARP requests and neighbour
// solicitations itself, for every address but the container's own, also when the
// container only asks whether an address is free. It keeps no table: an answer
// depends on the question alone. Frames from a MAC address that is not the
// interface's, to one that is not the gateway's or a group's, with VLAN tags, or
// with anything but IP and ARP inside are dropped and counted by reason
// ([DropCounter]). IP to groups and to all goes up to the switch, and so do the
// rest of neighbour discovery and group membership, which a switch knows to
// refuse from a TUN as well.
//
// # Where a TUN is made decides how its end is seen
//
// A TUN made in the maker's namespace by [Create] and then moved into a
// container's reports POLLERR as soon as the container's namespace dies, and
// ReadFrame returns [ErrGone]. One made inside the container's namespace pins
// that namespace silently for as long as the descriptor is open: it is for makers
// that see the container's end otherwise. The tests TestNetnsTunMovedReportsNamespaceDeath
// and TestNetnsTunOpenedInsidePinsNamespace hold both statements against the
// running kernel.
//
// A descriptor that came from another process is hostile until [Validate] or
// [ValidateTAP] has named it one of the wanted kind with the right flags, and
// each frame's header is hostile until [Header.Check] has held it against the
// parsed packet.
//
// # What bounds memory
//
// A device made by Open has about 1 KB, one made by OpenTAP two, and each of its
// concurrent writers one more. Wrap owns one read batch (device batch size times
// 64 KiB of address space, of which only the pages touched count) and a pool of
// write scratch buffers. Nothing here allocates per frame; tests assert it.
package tunnel
