package tunnel

import "errors"

// MaxPacket is the longest IP packet in a frame, in bytes: the limit of the
// 16-bit length fields of IPv4 and of IPv6 without jumbograms.
const MaxPacket = 65535

// MaxFrame is the longest frame, in bytes: header and packet.
const MaxFrame = HeaderLen + MaxPacket

// MaxBuffers is the number of buffers that one ReadFrame or WriteFrame takes.
const MaxBuffers = 64

// Device moves frames between a container's kernel and the switch.
type Device interface {
	// ReadFrame waits for one frame from the container, scatters it over
	// bufs in order and returns its length in bytes; the first HeaderLen
	// bytes are the virtio header. A frame longer than all bufs together is
	// cut, as read(2) on a TUN cuts it, so offer MaxFrame bytes. bufs belong
	// to the caller and are not retained. One caller at a time.
	//
	// Errors: os.ErrClosed after Close, [ErrGone] when the device is no more.
	// Both are final. It does not allocate.
	ReadFrame(bufs [][]byte) (int, error)

	// WriteFrame gathers one frame from bufs and gives it to the container,
	// whole or not at all, without waiting for room and without retaining or
	// changing bufs. Any number of callers at a time. It does not allocate.
	// A device whose far side cannot split superframes or complete checksums
	// does both itself.
	//
	// Errors: os.ErrClosed after Close, [ErrGone], and the passing
	// [ErrFull], [ErrDown] and [ErrFrame], for which the frame is lost and
	// the next may pass.
	WriteFrame(bufs [][]byte) error

	// MTU returns the largest packet, in bytes without the virtio header,
	// that the container expects to see once superframes are split.
	MTU() int

	// Close ends the device, unblocks ReadFrame and frees what the device
	// owns. The kernel may take a moment longer to take the interface away.
	// Calls after the first return os.ErrClosed.
	Close() error
}

// Watchable is a Device whose frames can be waited for together with other
// things, by epoll(7). Devices of [Open] and [OpenTAP] are.
type Watchable interface {
	Device

	// TryReadFrame is ReadFrame that does not wait: [ErrEmpty] says that there
	// is no frame now. It and ReadFrame share the one caller at a time.
	TryReadFrame(bufs [][]byte) (int, error)

	// Descriptor calls f with the descriptor that becomes readable when there
	// is a frame, and has an error when the device is gone. Take it out of
	// every epoll set before Close. os.ErrClosed after Close.
	Descriptor(f func(fd int)) error
}

// What can become of a device or of one frame. All of them are matched by
// errors.Is; os.ErrClosed is returned after Close.
var (
	// ErrGone says that the network device behind a descriptor no longer
	// exists: the container's namespace died or somebody deleted the device.
	ErrGone = errors.New("tunnel device is gone (its network namespace died or the interface was deleted)")

	// ErrEmpty says that no frame waits to be read.
	ErrEmpty = errors.New("no frame waits at the tunnel device")

	// ErrFull says that the far side has no room for the frame now.
	ErrFull = errors.New("tunnel device has no room for the frame")

	// ErrDown says that the container's interface is not up. The kernel
	// refuses frames to it and may accept them later.
	ErrDown = errors.New("tunnel device is down (the interface exists and is not up)")

	// ErrFrame says that the frame is malformed: too short, too long, in too
	// many pieces, not IP, or with a virtio header that contradicts the
	// packet.
	ErrFrame = errors.New("malformed frame")
)
