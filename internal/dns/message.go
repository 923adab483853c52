package dns

import (
	"encoding/binary"

	mdns "github.com/miekg/dns"
)

// request is one query, read.
type request struct {
	msg      *mdns.Msg
	question mdns.Question // as the client spelled it
	name     string        // lower case, no final dot
	edns     *mdns.OPT     // nil: the client speaks plain RFC 1035
}

// headerLen is the length of a DNS message's fixed header (RFC 1035 §4.1.1).
const headerLen = 12

// parseRequest reads a query. A nil request means that nothing can or may be
// answered: no whole header, or a message that is itself an answer (answering
// those would let two resolvers talk for ever). Another rcode than success is
// what the client is to be told instead of an answer.
func parseRequest(b []byte) (*request, int) {
	if len(b) < headerLen || b[2]&0x80 != 0 {
		return nil, 0
	}
	msg := new(mdns.Msg)
	if err := msg.Unpack(b); err != nil {
		return headerOnly(b), mdns.RcodeFormatError
	}
	r := &request{msg: msg}
	if msg.Opcode != mdns.OpcodeQuery {
		return headerOnly(b), mdns.RcodeNotImplemented
	}
	if len(msg.Question) != 1 || len(msg.Answer) > 0 {
		return headerOnly(b), mdns.RcodeFormatError
	}
	r.question = msg.Question[0]
	r.name = canonical(r.question.Name)
	options := 0
	for _, rr := range msg.Extra {
		if o, ok := rr.(*mdns.OPT); ok {
			r.edns = o
			options++
		}
	}
	switch {
	case options > 1: // RFC 6891 §6.1.1
		return r, mdns.RcodeFormatError
	case options == 1 && r.edns.Version() != 0:
		return r, mdns.RcodeBadVers
	}
	return r, mdns.RcodeSuccess
}

// headerOnly makes a request of which only id, opcode and flags are trusted.
func headerOnly(b []byte) *request {
	msg := new(mdns.Msg)
	msg.Id = binary.BigEndian.Uint16(b)
	msg.Opcode = int(b[2]>>3) & 0xf
	msg.RecursionDesired = b[2]&1 != 0
	return &request{msg: msg}
}

// reply is an empty answer to r.
func (r *request) reply(rcode int) *mdns.Msg {
	m := new(mdns.Msg)
	m.Id = r.msg.Id
	m.Response = true
	m.Opcode = r.msg.Opcode
	m.RecursionDesired = r.msg.RecursionDesired
	m.RecursionAvailable = true
	m.CheckingDisabled = r.msg.CheckingDisabled
	m.Rcode = rcode
	if r.question.Name != "" {
		m.Question = []mdns.Question{r.question}
	}
	return m
}

// do reports whether the client wants DNSSEC records.
func (r *request) do() bool { return r.edns != nil && r.edns.Do() }

// failure is SERVFAIL with the reason in words for clients that speak EDNS0
// (RFC 8914), which dig prints.
func (r *request) failure(code uint16, why string) *mdns.Msg {
	m := r.reply(mdns.RcodeServerFailure)
	if r.edns != nil {
		o := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
		o.Option = []mdns.EDNS0{&mdns.EDNS0_EDE{InfoCode: code, ExtraText: why}}
		m.Extra = append(m.Extra, o)
	}
	return m
}

// encode writes m for the client of r: with an OPT record if and only if the
// query had one (RFC 6891 §6.1.1), and cut to what client and transport take.
func (s *Server) encode(r *request, m *mdns.Msg, via transport) []byte {
	size := mdns.MaxMsgSize
	if !via.stream {
		size = mdns.MinMsgSize
		if r.edns != nil {
			size = max(size, int(r.edns.UDPSize()))
		}
		size = min(size, via.maxSize)
	}
	if r.edns != nil {
		o := m.IsEdns0()
		if o == nil {
			o = &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
			m.Extra = append(m.Extra, o)
		}
		o.SetUDPSize(uint16(s.cfg.MaxQuery))
		o.SetDo(r.do())
	}
	m.Compress = true
	m.Truncate(size)
	b, err := m.Pack()
	if err != nil || len(b) > size {
		s.count.unsendable.Add(1)
		b, err = r.reply(mdns.RcodeServerFailure).Pack()
		if err != nil || len(b) > size {
			return nil
		}
		return b
	}
	if m.Truncated {
		s.count.truncated.Add(1)
	}
	return b
}
