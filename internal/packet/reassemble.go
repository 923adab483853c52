package packet

import "time"

// ReassemblyLimits bound what one Reassembler holds.
type ReassemblyLimits struct {
	Bytes     int           // memory held by incomplete datagrams; 0: 256 KiB
	Timeout   time.Duration // age at which an incomplete datagram is discarded; 0: 30 s
	Datagrams int           // incomplete datagrams held; 0: 64
}

// ReassemblyFault says why a fragment or its datagram was discarded.
type ReassemblyFault uint8

// The faults of reassembly.
const (
	ReassemblyNone    ReassemblyFault = iota
	ReassemblyOverlap                 // fragments overlap: the whole datagram is discarded
	ReassemblyLength                  // fragments disagree about the length, or it is beyond 65535
	ReassemblyLimit                   // the link's limit is reached: the oldest datagram is discarded
	ReassemblyTimeout                 // incomplete for too long

	// NumReassemblyFaults is the number of faults, for arrays.
	NumReassemblyFaults
)

// String is a stable snake_case name, usable as a metric label.
func (f ReassemblyFault) String() string { return "" }

// Reassembler puts one link's fragments together. Not safe for concurrent use.
type Reassembler struct{ limits ReassemblyLimits }

// NewReassembler makes an empty Reassembler.
func NewReassembler(limits ReassemblyLimits) *Reassembler { return &Reassembler{limits: limits} }

// Add takes one fragment (h.Fragment is true; h parsed from pkt).
func (r *Reassembler) Add(h *Header, pkt [][]byte, now time.Time) (whole []byte, fault ReassemblyFault) {
	return nil, ReassemblyNone
}

// Expire discards what is older than the timeout at now. timedOut, which may be
// nil, is called with the first bytes of each discarded datagram whose first
// fragment had come (RFC 792, RFC 4443 §3.3: only then is Time Exceeded sent).
func (r *Reassembler) Expire(now time.Time, timedOut func(first []byte)) (discarded int) { return 0 }
