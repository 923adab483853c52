package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/usernet/usernet/internal/control"
)

// shortID is how many characters of a long container id people type, and DNS
// has room for: a 64 character id exceeds a label's 63 bytes (RFC 1035 §2.3.4).
const shortID = 12

// linkNames are the names of a link in its network's DNS.
type linkNames struct {
	link    string   // the switch's name of the link, unique
	aliases []string // the hostname if it was free, and the aliases
	domain  []string // those before, in this order, below the domain of the link's dns
	own     []string // those that no other link may have
}

// all lists every name, the hostname first when the link has it.
func (n linkNames) all() []string { return slices.Concat(n.aliases, []string{n.link}, n.domain) }

// further are the names besides the switch's name of the link.
func (n linkNames) further() []string { return slices.Concat(n.aliases, n.domain) }

// hostname is what the link's addresses resolve back to: the first name that is
// the link's alone, below the domain if there is one. Empty: the switch's name
// of the link.
func (n linkNames) hostname() string {
	for _, name := range slices.Concat(n.domain, n.aliases) {
		if slices.Contains(n.own, name) {
			return name
		}
	}
	return ""
}

// nameWishes are the names that a link is to have besides its own.
type nameWishes struct {
	hostname string
	aliases  []string
	domain   string // below which the names answer as well; empty: none
}

// chooseNamesLocked gives a new link its names, with Daemon.mu held, and
// reserves those that are its alone: one made of the container's id, which
// nothing can take from it, and the hostname unless another link was first.
func (n *network) chooseNamesLocked(key control.LinkKey, wish *nameWishes) linkNames {
	link := hashName(key)
	id := strings.ToLower(key.Container)
	for _, candidate := range []string{id, id[:min(len(id), shortID)], id[:min(len(id), shortID)] + "-" + strings.ToLower(key.IfName)} {
		if control.ValidDNSName(candidate) && n.freeForLocked(key, candidate) && candidate != gatewayName {
			link = candidate
			break
		}
	}
	return n.reserveNamesLocked(key, link, wish)
}

// reserveNamesLocked gives a link the names that it wishes besides its own,
// with Daemon.mu held. Aliases are shared among the links that have them, save
// that an alias never answers for another link's own name.
func (n *network) reserveNamesLocked(key control.LinkKey, link string, wish *nameWishes) linkNames {
	names := linkNames{link: link, own: []string{link}}
	if h := strings.ToLower(wish.hostname); h != "" && h != link && h != gatewayName && n.freeForLocked(key, h) {
		names.aliases = append(names.aliases, h)
		names.own = append(names.own, h)
	}
	for _, a := range wish.aliases {
		a = strings.ToLower(a)
		if a != gatewayName && n.freeForLocked(key, a) && a != link && !slices.Contains(names.aliases, a) {
			names.aliases = append(names.aliases, a)
		}
	}
	n.addDomainLocked(key, &names, strings.ToLower(strings.Trim(wish.domain, ".")))
	for _, name := range names.own {
		n.names[name] = key
	}
	return names
}

// addDomainLocked adds every name below a domain, with Daemon.mu held; that of
// the switch itself answers below its own in any case.
func (n *network) addDomainLocked(key control.LinkKey, names *linkNames, domain string) {
	if domain == "" || domain == dnsDomain {
		return
	}
	own := names.own
	for _, name := range append(slices.Clone(names.aliases), names.link) {
		below := name + "." + domain
		switch {
		case strings.HasSuffix(name, "."+domain), slices.Contains(names.aliases, below): // it is there
			continue
		case !control.ValidDNSName(below), !n.freeForLocked(key, below): // too long, or another link's
			continue
		}
		names.domain = append(names.domain, below)
		if slices.Contains(own, name) {
			names.own = append(names.own, below)
		}
	}
}

// freeForLocked reports whether a link may have a name.
func (n *network) freeForLocked(key control.LinkKey, name string) bool {
	holder, taken := n.names[name]
	return !taken || holder == key
}

// gatewayName is the switch's own name.
const gatewayName = "gateway"

// hashName is a name for a container whose id is no DNS name.
func hashName(key control.LinkKey) string {
	sum := sha256.Sum256([]byte(key.String()))
	return "c" + hex.EncodeToString(sum[:8])
}

// freeNamesLocked gives back a link's own names, except those to keep.
func (n *network) freeNamesLocked(key control.LinkKey, keep ...string) {
	for name, holder := range n.names {
		if holder == key && !slices.Contains(keep, name) {
			delete(n.names, name)
		}
	}
}
