package netstack

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/usernet/usernet/internal/packet"
)

// BenchmarkLinkLookup finds the link of an address among few and many.
func BenchmarkLinkLookup(b *testing.B) {
	for _, links := range []int{1, 1000} {
		s := sinkSwitch(b, Config{Gateways: []netip.Prefix{netip.MustParsePrefix("10.88.0.1/16"), netip.MustParsePrefix("fd88::1/64")}})
		v4, v6 := netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd88::1")
		for i := range links {
			v4, v6 = v4.Next(), v6.Next()
			if _, err := s.Attach(newSink(), LinkConfig{Name: strconv.Itoa(i), Addrs: []netip.Addr{v4, v6}}); err != nil {
				b.Fatal(err)
			}
		}
		for name, a := range map[string]netip.Addr{"v4": v4, "v6": v6} {
			b.Run(name+"/"+strconv.Itoa(links), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if s.linkByAddr(a) == nil {
						b.Fatal("no link")
					}
				}
			})
		}
	}
}

// BenchmarkFlowLookup finds the flow of a packet between links, and of its
// answer, which takes a second look.
func BenchmarkFlowLookup(b *testing.B) {
	for _, flows := range []int{1, 10_000} {
		s, l, _, _ := forwarder(b, 1, false)
		peer := s.linkByAddr(netip.MustParseAddr("10.88.0.3"))
		var k peerKey
		for i := range flows {
			k = peerKey{packet.ProtoTCP, ap(l.addrs[0], uint16(10_000+i)), ap(peer.addrs[0], 80)}
			s.flows.openPeer(k, flowSpec{link: l, peer: peer, direction: FlowPeer, proto: k.proto, source: k.src, destination: k.dst})
		}
		for name, k := range map[string]peerKey{"packet": k, "answer": {k.proto, k.dst, k.src}} {
			b.Run(name+"/"+strconv.Itoa(flows), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if f, _ := s.flows.lookupPeer(k); f == nil {
						b.Fatal("no flow")
					}
				}
			})
		}
	}
}

// BenchmarkNATLookup finds the flow of a datagram that leaves by a host socket.
func BenchmarkNATLookup(b *testing.B) {
	for _, flows := range []int{1, 4096} {
		table := new(natTable)
		sock := tableSocket(table)
		if !table.holdSocket(socketKey{ap(netip.MustParseAddr("10.88.0.2"), 1), true}, sock) {
			b.Fatal("not held")
		}
		var p *natPeer
		for i := range flows {
			p = tablePeer(sock, 1, uint16(i+1))
			if _, ok := table.add(p, flows, 0); !ok {
				b.Fatal("not added")
			}
		}
		b.Run(strconv.Itoa(flows), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if table.find(p.key) == nil {
					b.Fatal("no flow")
				}
			}
		})
	}
}
