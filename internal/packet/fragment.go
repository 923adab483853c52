package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Errors of Fragments, for errors.Is.
var (
	ErrMalformed   = errors.New("malformed packet")
	ErrMTUTooSmall = errors.New("MTU leaves no room for a fragment")
	ErrFragmented  = errors.New("IPv6 packet is a fragment already")
)

// fragmentBuffers keeps the buffers in which fragments are put together, so that
// a stream of large datagrams allocates nothing. A package-level pool because
// fragments are rare and links are many.
var fragmentBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Fragments hands pkt, one whole IP packet with its checksums complete, to emit
// in fragments of at most mtu bytes, in order. A packet that fits goes out as
// it is. IPv4 (RFC 791 §3.2) is split whatever its DF says, and the fragments
// carry DF clear and id's lower 16 bits; a fragment is split further and keeps
// its own id. IPv6 (RFC 8200 §4.5) gets fragment headers with id.
//
// Each fragment is valid until emit returns; pkt is not changed. The first error
// of emit ends the work and is returned as it is.
func Fragments(pkt []byte, mtu int, id uint32, emit func(frag []byte) error) error {
	var h Header
	if f := h.Parse(pkt, len(pkt)); f != FaultNone {
		return fmt.Errorf("split packet of %d bytes: %w: %v", len(pkt), ErrMalformed, f)
	}
	if len(pkt) <= mtu {
		return emit(pkt)
	}
	if h.Version == 6 {
		return fragmentIPv6(&h, pkt, mtu, id, emit)
	}
	return fragmentIPv4(&h, pkt, mtu, uint16(id), emit)
}

func fragmentIPv4(h *Header, pkt []byte, mtu int, id uint16, emit func([]byte) error) error {
	ihl := int(pkt[0]&0x0f) * 4
	room := (mtu - ihl) &^ 7
	if room <= h.Payload-ihl {
		// RFC 1858: a first fragment without all of the transport header is
		// dropped by Parse, and by firewalls.
		return fmt.Errorf("split IPv4 packet of %d bytes for MTU %d: %w", len(pkt), mtu, ErrMTUTooSmall)
	}
	if h.Fragment {
		id = uint16(h.FragID)
	}
	buf := fragmentBuffers.Get().(*[]byte)
	defer fragmentBuffers.Put(buf)
	*buf = slices.Grow((*buf)[:0], min(mtu, maxIPLen))
	data := pkt[ihl:]
	for off := 0; off < len(data); off += room {
		part := data[off:min(off+room, len(data))]
		word := uint16((h.FragOffset + off) / 8)
		if off+len(part) < len(data) || h.MoreFragments {
			word |= ipv4MoreFragments
		}
		// The only options that Parse lets through are padding and router
		// alert, which every fragment carries.
		b := append((*buf)[:0], pkt[:ihl]...)
		binary.BigEndian.PutUint16(b[2:], uint16(ihl+len(part)))
		binary.BigEndian.PutUint16(b[4:], id)
		binary.BigEndian.PutUint16(b[6:], word)
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], ^Checksum(b, 0))
		b = append(b, part...)
		*buf = b
		if err := emit(b); err != nil {
			return err
		}
	}
	return nil
}

func fragmentIPv6(h *Header, pkt []byte, mtu int, id uint32, emit func([]byte) error) error {
	if _, at := fragmentHeader(pkt); at > 0 {
		// Only a packet's source may split it.
		return fmt.Errorf("split IPv6 packet of %d bytes for MTU %d: %w", len(pkt), mtu, ErrFragmented)
	}
	// Hop-by-hop options are for every hop and stand in each fragment; all
	// other headers that Parse lets through are for the destination.
	field, fixed := 6, ipv6HeaderLen
	if pkt[field] == nextHopByHop {
		field, fixed = fixed, fixed+8+8*int(pkt[fixed+1])
	}
	room := (mtu - fixed - fragHeaderLen) &^ 7
	if room <= h.Payload-fixed {
		// RFC 7112: the first fragment holds all headers.
		return fmt.Errorf("split IPv6 packet of %d bytes for MTU %d: %w", len(pkt), mtu, ErrMTUTooSmall)
	}
	buf := fragmentBuffers.Get().(*[]byte)
	defer fragmentBuffers.Put(buf)
	*buf = slices.Grow((*buf)[:0], min(mtu, maxIPLen))
	data := pkt[fixed:]
	for off := 0; off < len(data); off += room {
		part := data[off:min(off+room, len(data))]
		word := uint16(off)
		if off+len(part) < len(data) {
			word |= 1
		}
		b := append((*buf)[:0], pkt[:fixed]...)
		b[field] = nextFragment
		binary.BigEndian.PutUint16(b[4:], uint16(fixed-ipv6HeaderLen+fragHeaderLen+len(part)))
		b = append(b, pkt[field], 0)
		b = binary.BigEndian.AppendUint16(b, word)
		b = binary.BigEndian.AppendUint32(b, id)
		b = append(b, part...)
		*buf = b
		if err := emit(b); err != nil {
			return err
		}
	}
	return nil
}

// fragmentHeader finds the fragment header of an IPv6 packet that Parse has
// accepted: the offset of the next-header field that names it, and its own
// offset, which is 0 when there is none.
func fragmentHeader(head []byte) (field, at int) {
	field, off := 6, ipv6HeaderLen
	for {
		switch head[field] {
		case nextFragment:
			return field, off
		case nextHopByHop, nextDestOpts:
			field, off = off, off+8+8*int(head[off+1])
		default:
			return field, 0
		}
	}
}
