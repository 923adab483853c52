package tunnel

import (
	"encoding/binary"
	"fmt"

	"github.com/usernet/usernet/internal/packet"
)

// HeaderLen is the length of a virtio-net header, in bytes.
const HeaderLen = 10

// Header.Flags, as in linux/virtio_net.h.
const (
	// FlagNeedsCsum says that the transport checksum field holds only the
	// pseudo-header's sum and is to be completed over the bytes from
	// CsumStart on.
	FlagNeedsCsum = 1
	// FlagDataValid says that the sender's kernel has verified the checksum.
	FlagDataValid = 2
)

// Header.GSOType, as in linux/virtio_net.h.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOUDPL4 = 5
	// GSOECN is or-ed to a TCP type when the first segment carries CWR.
	GSOECN = 0x80
)

// Header is the virtio-net header before each packet (struct virtio_net_hdr of
// linux/virtio_net.h, 10 bytes, little-endian). The zero value describes a
// plain packet with a complete checksum.
type Header struct {
	// Flags is a set of FlagNeedsCsum and FlagDataValid.
	Flags uint8
	// GSOType is GSONone for a plain packet; another value makes the packet a
	// superframe. GSOECN may be or-ed to it.
	GSOType uint8
	// HdrLen is the sender's idea of the length of all headers, in bytes. The
	// kernel's own value is wrong for forwarded packets: never rely on it.
	HdrLen uint16
	// GSOSize is the payload of each segment but the last, in bytes.
	GSOSize uint16
	// CsumStart is where summing starts, in bytes from the IP header; with
	// FlagNeedsCsum only.
	CsumStart uint16
	// CsumOffset is where the sum goes, in bytes from CsumStart.
	CsumOffset uint16
}

// Decode sets h from the first HeaderLen bytes of b, which must have that many.
func (h *Header) Decode(b []byte) {
	_ = b[HeaderLen-1]
	h.Flags = b[0]
	h.GSOType = b[1]
	h.HdrLen = binary.LittleEndian.Uint16(b[2:])
	h.GSOSize = binary.LittleEndian.Uint16(b[4:])
	h.CsumStart = binary.LittleEndian.Uint16(b[6:])
	h.CsumOffset = binary.LittleEndian.Uint16(b[8:])
}

// Encode writes h into the first HeaderLen bytes of b, which must have that
// many.
func (h Header) Encode(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = h.Flags
	b[1] = h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOffset)
}

// Superframe reports whether the packet stands for several segments.
func (h *Header) Superframe() bool { return h.GSOType&^GSOECN != GSONone }

// Offsets of the checksum field in the transport headers, in bytes
// (RFC 9293 §3.1, RFC 768).
const (
	tcpCsumOffset = 16
	udpCsumOffset = 6
)

// minTCPSegment is the least payload per TCP segment that Linux makes
// (TCP_MIN_SND_MSS 48 less 40 bytes of options), and maxUDPSegments the most
// datagrams in one UDP superframe (UDP_MAX_SEGMENTS of linux/udp.h since 6.9).
// They bound what one hostile superframe costs to split.
const (
	minTCPSegment  = 8
	maxUDPSegments = 128
)

// Why Check refuses a header. Fixed values, so that a flood of hostile frames
// allocates nothing.
var (
	errFlags        = fmt.Errorf("%w: unknown virtio flags", ErrFrame)
	errCsumPlace    = fmt.Errorf("%w: virtio csum_start or csum_offset is not the transport checksum's place", ErrFrame)
	errCsumProtocol = fmt.Errorf("%w: virtio NEEDS_CSUM on a packet without a completable transport checksum", ErrFrame)
	errGSOType      = fmt.Errorf("%w: virtio gso_type does not match the packet's version and protocol", ErrFrame)
	errGSOSize      = fmt.Errorf("%w: virtio gso_size is zero, or too small for the packet", ErrFrame)
	errGSOCsum      = fmt.Errorf("%w: virtio superframe without NEEDS_CSUM", ErrFrame)
)

// Check holds h against the packet it came with, parsed without fault. A
// header that passes may be acted on without further bounds checks: with
// FlagNeedsCsum, CsumStart is the transport header's offset and the checksum
// field lies inside the packet; with a GSO type, version and protocol fit,
// the size is positive, and the number of segments is bounded. HdrLen is
// neither checked nor used. The error matches [ErrFrame]; Check does not
// allocate.
func (h *Header) Check(p *packet.Header) error {
	if h.Flags&^(FlagNeedsCsum|FlagDataValid) != 0 {
		return errFlags
	}
	if h.Flags&FlagNeedsCsum != 0 {
		if err := h.checkCsum(p); err != nil {
			return err
		}
	}
	if h.GSOType == GSONone {
		return nil
	}
	return h.checkGSO(p)
}

func (h *Header) checkCsum(p *packet.Header) error {
	if p.Fragment {
		return errCsumProtocol
	}
	var offset uint16
	switch p.Proto {
	case packet.ProtoTCP:
		offset = tcpCsumOffset
	case packet.ProtoUDP:
		offset = udpCsumOffset
	default:
		return errCsumProtocol
	}
	if int(h.CsumStart) != p.L4 || h.CsumOffset != offset || p.L4+int(offset)+2 > p.Len {
		return errCsumPlace
	}
	return nil
}

func (h *Header) checkGSO(p *packet.Header) error {
	if h.Flags&FlagNeedsCsum == 0 {
		return errGSOCsum
	}
	payload, size := p.Len-p.Payload, int(h.GSOSize)
	switch h.GSOType {
	case GSOTCPv4, GSOTCPv4 | GSOECN:
		if p.Version != 4 || p.Proto != packet.ProtoTCP {
			return errGSOType
		}
	case GSOTCPv6, GSOTCPv6 | GSOECN:
		if p.Version != 6 || p.Proto != packet.ProtoTCP {
			return errGSOType
		}
	case GSOUDPL4:
		if p.Proto != packet.ProtoUDP {
			return errGSOType
		}
		if size == 0 || payload > size*maxUDPSegments {
			return errGSOSize
		}
		return nil
	default:
		return errGSOType
	}
	if size < minTCPSegment {
		return errGSOSize
	}
	return nil
}
