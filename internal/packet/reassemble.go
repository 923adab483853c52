package packet

import (
	"net/netip"
	"slices"
	"time"
)

// ReassemblyLimits bound what one Reassembler holds.
type ReassemblyLimits struct {
	// Bytes of memory held by incomplete datagrams, overhead included; 0 or
	// less: 256 KiB.
	Bytes int
	// Timeout is the age at which an incomplete datagram is discarded; 0 or
	// less: 30 s, as Linux has it (RFC 791 and RFC 8200 allow up to 60 s).
	Timeout time.Duration
	// Datagrams that may be incomplete at a time; 0 or less: 64.
	Datagrams int
}

// ReassemblyFault says why fragments were discarded. The zero value says that
// none were.
type ReassemblyFault uint8

// The faults of reassembly.
const (
	ReassemblyNone    ReassemblyFault = iota
	ReassemblyOverlap                 // fragments overlap: the datagram and all that comes of it is discarded
	ReassemblyLength                  // fragments disagree about the end, or it lies beyond 65535: as overlap
	ReassemblyLimit                   // the link's limit is reached: its oldest datagram is discarded
	ReassemblyTimeout                 // incomplete for too long

	// NumReassemblyFaults is the number of faults with ReassemblyNone, for arrays.
	NumReassemblyFaults
)

var reassemblyFaultNames = [NumReassemblyFaults]string{
	ReassemblyNone:    "none",
	ReassemblyOverlap: "fragment_overlap",
	ReassemblyLength:  "fragment_length",
	ReassemblyLimit:   "fragment_limit",
	ReassemblyTimeout: "fragment_timeout",
}

// String is a stable snake_case name, usable as a metric label.
func (f ReassemblyFault) String() string {
	if f >= NumReassemblyFaults {
		return "unknown"
	}
	return reassemblyFaultNames[f]
}

// Reassembler puts the fragments of one link's packets together (RFC 791 §3.2,
// RFC 8200 §4.5). Its limits are the link's own: what a container does with
// fragments discards no other container's. Not safe for concurrent use; its
// owner is the link's reader.
//
// Overlapping fragments discard the whole datagram in both families, with what
// still comes of it (RFC 5722), as do fragments that disagree about its length.
// An exact repetition of a fragment is passed over.
type Reassembler struct {
	limits         ReassemblyLimits
	pending        map[datagramKey]*datagram
	oldest, newest *datagram // the same datagrams by age
	bytes          int       // sum of their charges
	spare          *datagram // buffers of the last complete datagram, for the next
	whole          []byte    // what Add returned last; Expire may let go of it, not write to it
	first          []byte    // what Expire tells of
	discarded      [NumReassemblyFaults]uint64
}

// datagramKey tells datagrams apart. proto is 0 for IPv6, where the
// identification alone has to do.
type datagramKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// NewReassembler makes an empty Reassembler.
func NewReassembler(limits ReassemblyLimits) *Reassembler {
	if limits.Bytes <= 0 {
		limits.Bytes = 256 << 10
	}
	if limits.Timeout <= 0 {
		limits.Timeout = 30 * time.Second
	}
	if limits.Datagrams <= 0 {
		limits.Datagrams = 64
	}
	return &Reassembler{limits: limits, pending: make(map[datagramKey]*datagram)}
}

// Add takes one fragment: h was parsed from pkt, the packet in pieces, whose
// first piece holds all headers. pkt is not retained. now never goes backwards.
//
// whole is not nil when the fragment completes its datagram: the IP packet
// without a trace of fragments (DF as in the first one), valid until the next
// Add; Expire leaves it alone. A packet that is no fragment comes back as it is.
//
// fault is not ReassemblyNone when the call discarded fragments: this one, its
// datagram, or older datagrams to make room (ReassemblyLimit, with which whole
// may still be non-nil). Discarded counts fragment by fragment.
func (r *Reassembler) Add(h *Header, pkt [][]byte, now time.Time) (whole []byte, fault ReassemblyFault) {
	if !h.Fragment {
		r.whole = appendRange(r.whole[:0], pkt, 0, h.Len)
		return r.whole, ReassemblyNone
	}
	if r.expire(now, nil) > 0 {
		fault = ReassemblyTimeout
	}
	d := r.pending[keyOf(h)]
	if d == nil {
		if len(r.pending) >= r.limits.Datagrams {
			r.discard(r.oldest, ReassemblyLimit)
			fault = ReassemblyLimit
		}
		d = r.open(h, now)
	}
	if d.dead != ReassemblyNone {
		r.discarded[d.dead]++
		return nil, d.dead
	}
	before := d.charge()
	bad := d.add(h, pkt)
	r.bytes += d.charge() - before
	if bad != ReassemblyNone {
		r.discarded[bad]++
		r.kill(d, bad)
		return nil, bad
	}
	if d.complete() {
		r.whole = d.appendWhole(r.whole[:0])
		r.remove(d)
		r.spare = d
		return r.whole, fault
	}
	for r.bytes > r.limits.Bytes {
		fault = ReassemblyLimit
		r.discard(r.oldest, ReassemblyLimit) // d itself at last
	}
	return nil, fault
}

// Expire discards the datagrams that are incomplete for longer than the timeout
// at now, and returns how many. timedOut, which may be nil, gets each one's
// first fragment as it came, valid until it returns, unless that fragment never
// came: ICMP Time Exceeded is sent for it and only for it (RFC 792, RFC 8200
// §4.5). When nothing is left, all memory is given back. An owner that calls
// Expire every few seconds holds no memory for long; Add alone does so too, but
// only when it is called, and tells nobody of the first fragments.
func (r *Reassembler) Expire(now time.Time, timedOut func(first []byte)) (discarded int) {
	discarded = r.expire(now, timedOut)
	if r.oldest == nil {
		r.spare, r.whole, r.first = nil, nil, nil
	}
	return discarded
}

func (r *Reassembler) expire(now time.Time, timedOut func(first []byte)) (discarded int) {
	for d := r.oldest; d != nil && now.Sub(d.since) >= r.limits.Timeout; d = r.oldest {
		if timedOut != nil && d.hasFirst() {
			r.first = d.appendFirst(r.first[:0])
			timedOut(r.first)
		}
		if d.dead == ReassemblyNone {
			discarded++
		}
		r.discard(d, ReassemblyTimeout)
	}
	return discarded
}

// Held is how many incomplete datagrams there are, those included of which only
// the name is kept to discard what still comes, and what memory they hold.
func (r *Reassembler) Held() (datagrams, bytes int) { return len(r.pending), r.bytes }

// Discarded is how many fragments were discarded so far, by fault.
func (r *Reassembler) Discarded() [NumReassemblyFaults]uint64 { return r.discarded }

func keyOf(h *Header) datagramKey {
	k := datagramKey{src: h.Src, dst: h.Dst, id: h.FragID}
	if h.Version == 4 {
		k.proto = h.Proto
	}
	return k
}

// open makes the datagram that h begins, the newest.
func (r *Reassembler) open(h *Header, now time.Time) *datagram {
	d := r.spare
	r.spare = nil
	if d == nil {
		d = new(datagram)
	}
	d.reset(keyOf(h), now)
	r.pending[d.key] = d
	d.older = r.newest
	if r.newest != nil {
		r.newest.newer = d
	} else {
		r.oldest = d
	}
	r.newest = d
	r.bytes += d.charge()
	return d
}

// remove takes d out, without a count.
func (r *Reassembler) remove(d *datagram) {
	delete(r.pending, d.key)
	r.bytes -= d.charge()
	if d.older != nil {
		d.older.newer = d.newer
	} else {
		r.oldest = d.newer
	}
	if d.newer != nil {
		d.newer.older = d.older
	} else {
		r.newest = d.older
	}
	d.older, d.newer = nil, nil
}

// discard takes d out and counts its fragments.
func (r *Reassembler) discard(d *datagram, why ReassemblyFault) {
	r.discarded[why] += uint64(len(d.parts))
	r.remove(d)
}

// kill counts and frees d's fragments and keeps its name until the timeout, so
// that fragments still to come are discarded as well.
func (r *Reassembler) kill(d *datagram, why ReassemblyFault) {
	r.discarded[why] += uint64(len(d.parts))
	r.bytes -= d.charge()
	d.header, d.data, d.parts = nil, nil, nil
	d.dead = why
	r.bytes += d.charge()
}

// appendRange appends n bytes, from byte skip on, of the concatenation of bufs.
func appendRange(b []byte, bufs [][]byte, skip, n int) []byte {
	b = slices.Grow(b, n)
	for _, s := range bufs {
		if skip >= len(s) {
			skip -= len(s)
			continue
		}
		s = s[skip:]
		skip = 0
		if len(s) >= n {
			return append(b, s[:n]...)
		}
		b = append(b, s...)
		n -= len(s)
	}
	return b
}
