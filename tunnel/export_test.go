package tunnel

import (
	"errors"
	"net"
	"net/netip"
)

// Split is the splitter as one call, for tests in tunnel_test.
func Split(hdr Header, pkt []byte) ([][]byte, error) {
	var s splitter
	if err := s.start(hdr, pkt); err != nil {
		return nil, err
	}
	var all [][]byte
	for s.nextLen() > 0 {
		// With guard bytes that next must not touch.
		b := make([]byte, s.nextLen(), s.nextLen()+8)
		copy(b[len(b):cap(b)], "guarding")
		s.next(b)
		if string(b[len(b):cap(b)]) != "guarding" {
			return nil, errors.New("next wrote past the length that nextLen told")
		}
		all = append(all, b)
	}
	return all, nil
}

// EtherPort is an etherPort for tests in tunnel_test.
type EtherPort struct {
	port   etherPort
	virtio [HeaderLen]byte
	bufs   [4][]byte
}

// NewEtherPort makes the switch's end of a container's wire. moved may be nil.
func NewEtherPort(container, gateway net.HardwareAddr, moved func(net.HardwareAddr) bool, own ...netip.Addr) *EtherPort {
	p := &EtherPort{port: etherPort{gateway: macOf(gateway), own: own}}
	p.port.container.Store(uint64(macOf(container)))
	if moved != nil {
		p.port.moved = func(m mac) bool { return moved(m.append(nil)) }
	}
	return p
}

// Receive judges one Ethernet frame, which lies in memory as a reader scatters
// it. It returns how much of the payload is an IP packet, the Ethernet frame
// that answers, and why the frame was dropped, "none" if it was not.
func (p *EtherPort) Receive(frame []byte) (length int, answer []byte, drop string) {
	payload := frame[etherLen:]
	cut := min(len(payload), 7)
	p.bufs = [4][]byte{p.virtio[:], payload[:cut], nil, payload[cut:]}
	n, reason := p.port.receive(frame[:etherLen], p.bufs[:], len(payload))
	if len(p.port.answer) > 0 {
		answer = p.port.answer[HeaderLen:]
	}
	return n, answer, reason.String()
}

// EtherHeader gives a virtio header as it stands before an Ethernet frame, and
// as it comes back from there; ok is false when it does not fit.
func EtherHeader(h Header) (wire, back Header, ok bool) {
	var t etherTransfer
	ok = t.seal(h, 0, 0, etherIPv4)
	wire.Decode(t.front[:])
	return wire, t.virtioHeader(), ok
}
