package netstack

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/usernet/usernet/internal/packet"
	"github.com/usernet/usernet/tunnel"
)

// recorder is a sink that keeps the acknowledgement numbers of what is written.
type recorder struct {
	*sink
	numbers []uint32
}

func (r *recorder) WriteFrame(bufs [][]byte) error {
	pkt := slices.Concat(bufs...)[tunnel.HeaderLen:]
	var h packet.Header
	if h.Parse(pkt, len(pkt)) != packet.FaultNone {
		return tunnel.ErrFrame
	}
	r.numbers = append(r.numbers, binary.BigEndian.Uint32(pkt[h.L4+8:]))
	return nil
}

var (
	timestamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	selective  = []byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2}
)

// acknowledgement is a segment with that number of a flow.
type acknowledgement struct {
	number  uint32
	flow    int
	flags   uint8 // besides ACK
	options []byte
	data    string
}

func (a acknowledgement) frame(v4 bool) *frame {
	src, dst := netip.MustParseAddr("fd88::2"), netip.MustParseAddr("fd88::3")
	if v4 {
		src, dst = netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("10.88.0.3")
	}
	length := 20 + len(a.options) + len(a.data)
	b := packet.AppendIP(nil, packet.ProtoTCP, src, dst, 64, 0, length, 7, true)
	b = binary.BigEndian.AppendUint16(b, 1000)
	b = binary.BigEndian.AppendUint16(b, uint16(2000+a.flow))
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, a.number)
	b = append(b, byte(20+len(a.options))<<2, packet.FlagACK|a.flags, 0xff, 0xff, 0, 0, 0, 0)
	b = append(append(b, a.options...), a.data...)
	f := new(frame)
	f.decode(fill(f, tunnel.Header{}, b))
	return f
}

func TestRunsOfACKsAreOne(t *testing.T) {
	type acks = []acknowledgement
	many := make(acks, maxPassing+2)
	for i := range many {
		many[i] = acknowledgement{number: uint32(i + 1), flow: i}
	}
	for name, tt := range map[string]struct {
		sent acks
		want []uint32
	}{
		"a run":           {acks{{number: 1}, {number: 2}, {number: 3}}, []uint32{3}},
		"with timestamps": {acks{{number: 1, options: timestamps}, {number: 2, options: timestamps}}, []uint32{2}},
		"past the end":    {acks{{number: 0xffffff00}, {number: 5}}, []uint32{5}},
		"two flows":       {acks{{number: 1}, {number: 2, flow: 1}, {number: 3}, {number: 4, flow: 1}}, []uint32{3, 4}},
		"duplicates":      {acks{{number: 1}, {number: 1}, {number: 1}}, []uint32{1, 1, 1}},
		"overtaken":       {acks{{number: 5}, {number: 4}}, []uint32{5, 4}},
		"selective":       {acks{{number: 1}, {number: 2, options: selective}, {number: 3}}, []uint32{1, 2, 3}},
		"options begin":   {acks{{number: 1}, {number: 2, options: timestamps}}, []uint32{1, 2}},
		"data":            {acks{{number: 1}, {number: 2, data: "x"}, {number: 3}, {number: 4}}, []uint32{1, 2, 4}},
		"end":             {acks{{number: 1}, {number: 2, flags: packet.FlagFIN}}, []uint32{1, 2}},
		"congestion":      {acks{{number: 1}, {number: 2, flags: 0x40}, {number: 3}}, []uint32{1, 2, 3}}, // ECE
		"more than fit":   {many, append([]uint32{maxPassing + 1, maxPassing + 2}, numbersTo(maxPassing)...)},
		"room again":      {append(slices.Clone(many[:maxPassing]), acknowledgement{number: 90, data: "x"}, acknowledgement{number: 91, flow: 40}), slices.Concat([]uint32{1, 90, maxPassing}, numbersTo(maxPassing - 1)[1:], []uint32{91})},
	} {
		families(t, func(t *testing.T, v4 bool) {
			s := sinkSwitch(t, Config{Gateways: []netip.Prefix{netip.MustParsePrefix("10.88.0.1/24")}})
			dev := &recorder{sink: newSink()}
			to, err := s.Attach(dev, LinkConfig{Name: "to", Addrs: []netip.Addr{netip.MustParseAddr("10.88.0.3")}})
			if err != nil {
				t.Fatal(err)
			}
			var p passingACKs
			flows := map[int]*flow{}
			superseded := 0
			for _, a := range tt.sent {
				if flows[a.flow] == nil {
					flows[a.flow] = new(flow)
				}
				f := a.frame(v4)
				switch p.take(flows[a.flow], to, f) {
				case passNow:
					to.send(f.raw)
				case passNever:
					superseded++
				case passLater:
				}
			}
			p.flush()
			if !slices.Equal(dev.numbers, tt.want) {
				t.Errorf("%s: written %v, want %v", name, dev.numbers, tt.want)
			}
			if superseded != len(tt.sent)-len(tt.want) {
				t.Errorf("%s: %d superseded", name, superseded)
			}
			if p.count != 0 || p.held[0].flow != nil || p.held[0].to != nil {
				t.Errorf("%s: left %+v", name, p.held[:p.count])
			}
		})
	}
}

// numbersTo are 1 to n.
func numbersTo(n int) (all []uint32) {
	for i := range n {
		all = append(all, uint32(i+1))
	}
	return all
}

func TestPassingACKsAllocatesNothing(t *testing.T) {
	s, l, _, _ := forwarder(t, 0, false)
	to := s.linkByAddr(netip.MustParseAddr("10.88.0.3"))
	fl := new(flow)
	first, second := acknowledgement{number: 1}.frame(true), acknowledgement{number: 2}.frame(true)
	if n := testing.AllocsPerRun(1000, func() {
		l.worker.passing.take(fl, to, first)
		l.worker.passing.take(fl, to, second)
		l.worker.passing.flush()
	}); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}
