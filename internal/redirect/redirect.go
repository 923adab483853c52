package redirect

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Rule leads one host address and port to a socket on another port.
type Rule struct {
	// Proto is "tcp" or "udp".
	Proto string
	// Host is what clients ask for. An unspecified address stands for every
	// address of the host of its family.
	Host netip.AddrPort
	// Port is where the socket is bound, at Host's address.
	Port uint16
}

// String is the rule as "0.0.0.0:8080/tcp to port 41523".
func (r Rule) String() string { return fmt.Sprintf("%s/%s to port %d", r.Host, r.Proto, r.Port) }

// Overlaps reports whether some client could mean either rule.
func (r Rule) Overlaps(o Rule) bool {
	a, b := r.Host.Addr(), o.Host.Addr()
	return r.Proto == o.Proto && r.Host.Port() == o.Host.Port() && a.Is4() == b.Is4() &&
		(a == b || a.IsUnspecified() || b.IsUnspecified())
}

// ErrUnavailable says that this kernel, or this process, cannot redirect.
var ErrUnavailable = errors.New("redirect is not available")

// Open makes a table with the rules in the current network namespace and returns
// the socket that owns it, which the caller owns: the table is there until the
// last duplicate of the socket is closed. owner says in its name whose it is.
//
// Errors match [ErrUnavailable] where no table could be made at all.
func Open(owner string, rules []Rule) (*os.File, error) {
	f, err := open(tableName(owner), rules)
	if err != nil {
		return nil, fmt.Errorf("redirect host ports of %s: %w", owner, explain(err))
	}
	Forget(rules)
	return f, nil
}

// prefix begins the names of all our tables.
const prefix = "usernet/"

// maxOwner bounds the part of a table's name that tells the owner; the kernel
// takes NFT_NAME_MAXLEN, 256 bytes, with the terminating zero.
const maxOwner = 200

// tableName is never the same twice: a table that goes with an old link may
// still be there when that link's successor is made.
func tableName(owner string) string {
	var b [4]byte
	rand.Read(b[:]) // never fails, by its documentation
	return prefix + ownerName(owner) + "/" + hex.EncodeToString(b[:])
}

// ownerName is the owner as names have it.
func ownerName(owner string) string {
	if len(owner) <= maxOwner {
		return owner
	}
	sum := sha256.Sum256([]byte(owner))
	return hex.EncodeToString(sum[:])
}

// explain says what a failure of nf_tables is for lack of.
func explain(err error) error {
	var why string
	switch {
	case errors.Is(err, unix.EPERM):
		why = "it needs CAP_NET_ADMIN in the network namespace of the ports"
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		why = "it needs nf_tables with NAT in the kernel (modprobe nf_tables nft_chain_nat nft_nat nft_fib_inet)"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		why = "it needs nf_tables of Linux 5.12 or newer, whose tables can have an owner"
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("%w: the kernel has no room for another table of this kind in one network namespace (1024)", err)
	default:
		return err
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, why, err)
}

// kind tells the four kinds of host addresses apart, each with a map of its own.
type kind struct {
	name     string
	v4       bool
	specific bool
}

var kinds = []kind{{"ip4", true, true}, {"ip6", false, true}, {"any4", true, false}, {"any6", false, false}}

// of reports whether a rule is of the kind.
func (k kind) of(r Rule) bool {
	return r.Host.Addr().Is4() == k.v4 && r.Host.Addr().IsUnspecified() != k.specific
}

// The numbers of the protocols, as maps hold them.
var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

// check refuses rules that no table could hold.
func check(rules []Rule) error {
	for n, r := range rules {
		if _, ok := protocols[r.Proto]; !ok || !r.Host.Addr().IsValid() || r.Host.Addr().Is4In6() || r.Host.Port() == 0 || r.Port == 0 {
			return fmt.Errorf("rule %v: want tcp or udp, an address and ports", r)
		}
		for _, other := range rules[:n] {
			if r.Overlaps(other) {
				return fmt.Errorf("rules %v and %v: one client could mean both", other, r)
			}
		}
	}
	if len(rules) == 0 {
		return errors.New("no rules")
	}
	return nil
}

// compareRules sorts by port, address and protocol.
func compareRules(a, b Rule) int {
	return cmp.Or(cmp.Compare(a.Host.Port(), b.Host.Port()), a.Host.Addr().Compare(b.Host.Addr()), cmp.Compare(a.Proto, b.Proto))
}
