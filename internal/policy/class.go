package policy

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// Class is what kind of address an address is, by itself: without regard to the
// network, to the host, or to an address embedded in it.
type Class uint8

// The classes. ClassOrdinary is every address that is not special to us, private
// ranges among them.
const (
	ClassInvalid     Class = iota // the zero address
	ClassOrdinary                 // may be reached
	ClassLoopback                 // 127.0.0.0/8, ::1
	ClassThisNetwork              // 0.0.0.0/8, ::; Linux connects 0.0.0.0 to its loopback
	ClassLinkLocal                // 169.254.0.0/16, fe80::/10
	ClassMetadata                 // where clouds hand out a machine's credentials
	ClassMulticast                // 224.0.0.0/4, ff00::/8
	ClassBroadcast                // 255.255.255.255
	ClassReserved                 // 240.0.0.0/4

	numClasses
)

// classes names each class and the reason for which it is refused.
var classes = [numClasses]struct {
	name   string
	reason Reason
}{
	ClassInvalid:     {"invalid", ReasonInvalid},
	ClassOrdinary:    {"ordinary", ReasonNone},
	ClassLoopback:    {"loopback", ReasonLoopback},
	ClassThisNetwork: {"this_network", ReasonThisNetwork},
	ClassLinkLocal:   {"link_local", ReasonLinkLocal},
	ClassMetadata:    {"metadata", ReasonMetadata},
	ClassMulticast:   {"multicast", ReasonMulticast},
	ClassBroadcast:   {"broadcast", ReasonBroadcast},
	ClassReserved:    {"reserved", ReasonReserved},
}

// String is a stable snake_case name.
func (c Class) String() string {
	if c >= numClasses {
		return "unknown"
	}
	return classes[c].name
}

// special lists the prefixes of the baseline; the longest match counts. The
// metadata addresses are those of the clouds' own documents.
var special = []struct {
	prefix string
	class  Class
}{
	{"0.0.0.0/8", ClassThisNetwork},        // RFC 1122 §3.2.1.3
	{"127.0.0.0/8", ClassLoopback},         // RFC 1122 §3.2.1.3
	{"169.254.0.0/16", ClassLinkLocal},     // RFC 3927
	{"169.254.169.254/32", ClassMetadata},  // AWS, Azure, GCP, OpenStack and others
	{"169.254.170.2/32", ClassMetadata},    // AWS ECS task credentials
	{"169.254.170.23/32", ClassMetadata},   // AWS EKS pod identity
	{"168.63.129.16/32", ClassMetadata},    // Azure wire server
	{"100.100.100.200/32", ClassMetadata},  // Alibaba
	{"192.0.0.192/32", ClassMetadata},      // Oracle
	{"224.0.0.0/4", ClassMulticast},        // RFC 5771
	{"240.0.0.0/4", ClassReserved},         // RFC 1112 §4
	{"255.255.255.255/32", ClassBroadcast}, // RFC 919
	{"::/128", ClassThisNetwork},           // RFC 4291 §2.5.2
	{"::1/128", ClassLoopback},             // RFC 4291 §2.5.3
	{"fe80::/10", ClassLinkLocal},          // RFC 4291 §2.5.6
	{"fe80::a9fe:a9fe/128", ClassMetadata}, // OpenStack
	{"fd00:ec2::254/128", ClassMetadata},   // AWS
	{"fd00:ec2::23/128", ClassMetadata},    // AWS EKS pod identity
	{"fd20:ce::254/128", ClassMetadata},    // GCP
	{"ff00::/8", ClassMulticast},           // RFC 4291 §2.7
}

// specials is special, compiled; never changed afterwards.
var specials = compileSpecial()

func compileSpecial() *bart.Table[Class] {
	t := new(bart.Table[Class])
	for _, s := range special {
		t.Insert(netip.MustParsePrefix(s.prefix), s.class)
	}
	return t
}

// Classify says what kind of address a is. An IPv4-mapped IPv6 address has the
// class of its IPv4 address; a zone is not looked at.
func Classify(a netip.Addr) Class {
	if !a.IsValid() {
		return ClassInvalid
	}
	if c, ok := specials.Lookup(plain(a)); ok {
		return c
	}
	return ClassOrdinary
}

// plain is a without IPv4-mapping and zone, as tables hold addresses.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
