package packet

import (
	"net/netip"
	"testing"
)

// quoting is what a container sends about a packet of another host's.
func quoting(t testing.TB, orig []byte) (*Header, []byte) {
	t.Helper()
	from := b4
	if orig[0]>>4 == 6 {
		from = b6
	}
	pkt := AppendICMPError(nil, ErrPortUnreachable, from, 0, orig)
	h := new(Header)
	if fault := h.Parse(pkt, len(pkt)); fault != FaultNone {
		t.Fatal(fault)
	}
	return h, pkt
}

func TestQuotedNamesTheFlow(t *testing.T) {
	for name, tc := range map[string]struct {
		orig     []byte
		proto    uint8
		src, dst uint16
	}{
		"tcp4":           {ip4(6, 0, nil, tcp(2)), 6, 40000, 443},
		"udp4":           {ip4(17, 0, nil, udp(1, 2)), 17, 5353, 53},
		"udp4, options":  {ip4(17, 0, []byte{148, 4, 0, 0}, udp()), 17, 5353, 53},
		"echo4":          {ip4(1, 0, nil, echo(8)), 1, 0x0102, 0x0102},
		"sctp4":          {ip4(132, 0, nil, pattern(12)), 132, 0, 0},
		"first fragment": {ip4(17, 0x2000, nil, udp(pattern(8)...)), 17, 5353, 53},
		"tcp6":           {ip6(6, tcp(2)), 6, 40000, 443},
		"udp6":           {ip6(17, udp(1, 2)), 17, 5353, 53},
		"echo6":          {ip6(58, echo(128)), 58, 0x0102, 0x0102},
		"first fragment of IPv6": {
			ip6(44, frag6(17, 0, true, 9), udp(pattern(8)...)), 17, 5353, 53,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, pkt := quoting(t, tc.orig)
			src, dst := a4, b4
			if h.Version == 6 {
				src, dst = a6, b6
			}
			want := Quoted{tc.proto, netip.AddrPortFrom(src, tc.src), netip.AddrPortFrom(dst, tc.dst)}
			if q, ok := h.Quoted(pkt[:min(len(pkt), HeadLen)]); !ok || q != want {
				t.Errorf("%+v, %v; want %+v", q, ok, want)
			}
			for n := h.Payload; n < h.Payload+20; n++ { // shorter than any header that it may quote
				short := *h
				short.Len = n
				if q, ok := short.Quoted(pkt); ok {
					t.Errorf("quote of %d bytes: %+v", n-h.Payload, q)
				}
			}
		})
	}
	h, pkt := quoting(t, ip4(17, 0, nil, udp()))
	pkt[h.Payload+7] = 1 // a later fragment
	if q, ok := h.Quoted(pkt); ok {
		t.Errorf("later fragment: %+v", q)
	}
	pkt = ip4(1, 0, nil, echo(8))
	h.Parse(pkt, len(pkt))
	if q, ok := h.Quoted(pkt); ok {
		t.Errorf("no error: %+v", q)
	}
}

// FuzzQuoted: Quoted reads no further than the packet, and what it names of a
// whole packet is what Parse reads of it.
func FuzzQuoted(f *testing.F) {
	for _, pkt := range seeds(f) {
		f.Add(pkt, len(pkt))
		f.Add(pkt, 28)
	}
	f.Fuzz(func(t *testing.T, orig []byte, quoted int) {
		pkt := AppendICMPError(nil, ErrPortUnreachable, b4, 0, orig)
		if len(pkt) == 0 {
			pkt = AppendICMPError(nil, ErrPortUnreachable, b6, 0, orig)
		}
		var h, inner Header
		if len(pkt) == 0 || h.Parse(pkt, len(pkt)) != FaultNone {
			return
		}
		q, ok := h.Quoted(pkt[:len(pkt):len(pkt)]) // reads beyond panic
		if n := h.Payload + max(quoted, 0); n < len(pkt) {
			cut := h
			cut.Len = n
			cut.Quoted(pkt[:n:n])
		}
		if ok && inner.Parse(pkt[h.Payload:], len(pkt)-h.Payload) == FaultNone &&
			(q.Proto != inner.Proto || q.Src != inner.SrcAddrPort() || q.Dst != inner.DstAddrPort()) {
			t.Fatalf("quoted %+v, parsed %+v", q, inner)
		}
	})
}
