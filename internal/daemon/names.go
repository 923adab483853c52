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

// validDNSName reports whether a resolver can be asked for the name: labels of
// letters, digits, hyphens and the underscore that container names use.
func validDNSName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.ToLower(name), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// linkNames are the names of a link in its network's DNS.
type linkNames struct {
	link    string   // the switch's name of the link, unique
	aliases []string // the hostname if it was free, and the aliases
	own     []string // those that no other link may have
}

// all lists every name, the hostname first when the link has it.
func (n linkNames) all() []string { return append(slices.Clone(n.aliases), n.link) }

// chooseNamesLocked gives a new link its names, with Daemon.mu held, and
// reserves those that are its alone: one made of the container's id, which
// nothing can take from it, and the hostname unless another link was first.
func (n *network) chooseNamesLocked(key control.LinkKey, hostname string, aliases []string) linkNames {
	link := hashName(key)
	id := strings.ToLower(key.Container)
	for _, candidate := range []string{id, id[:min(len(id), shortID)], id[:min(len(id), shortID)] + "-" + strings.ToLower(key.IfName)} {
		if validDNSName(candidate) && n.freeForLocked(key, candidate) && candidate != gatewayName {
			link = candidate
			break
		}
	}
	return n.reserveNamesLocked(key, link, hostname, aliases)
}

// reserveNamesLocked gives a link the names that it wishes besides its own,
// with Daemon.mu held. Aliases are shared among the links that have them, save
// that an alias never answers for another link's own name.
func (n *network) reserveNamesLocked(key control.LinkKey, link, hostname string, aliases []string) linkNames {
	names := linkNames{link: link, own: []string{link}}
	if h := strings.ToLower(hostname); h != "" && h != link && h != gatewayName && n.freeForLocked(key, h) {
		names.aliases = append(names.aliases, h)
		names.own = append(names.own, h)
	}
	for _, a := range aliases {
		a = strings.ToLower(a)
		if a != gatewayName && n.freeForLocked(key, a) && a != link && !slices.Contains(names.aliases, a) {
			names.aliases = append(names.aliases, a)
		}
	}
	for _, name := range names.own {
		n.names[name] = key
	}
	return names
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
