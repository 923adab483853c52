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

// chooseNamesLocked gives a link its names, with Daemon.mu held, and reserves
// those that are its alone: one made of the container's id, which nothing can
// take from it, and the hostname unless another link was first. Aliases are
// shared among the links that have them, save that an alias never answers for
// another link's own name.
func (n *network) chooseNamesLocked(req *control.AttachRequest) linkNames {
	key := req.Key()
	free := func(name string) bool {
		holder, taken := n.names[name]
		return !taken || holder == key
	}
	names := linkNames{link: hashName(key)}
	id := strings.ToLower(req.Container)
	for _, candidate := range []string{id, id[:min(len(id), shortID)], id[:min(len(id), shortID)] + "-" + strings.ToLower(req.IfName)} {
		if validDNSName(candidate) && free(candidate) && candidate != gatewayName {
			names.link = candidate
			break
		}
	}
	names.own = []string{names.link}
	if h := strings.ToLower(req.Hostname); h != "" && h != names.link && h != gatewayName && free(h) {
		names.aliases = append(names.aliases, h)
		names.own = append(names.own, h)
	}
	for _, a := range req.Aliases {
		a = strings.ToLower(a)
		if a != gatewayName && free(a) && a != names.link && !slices.Contains(names.aliases, a) {
			names.aliases = append(names.aliases, a)
		}
	}
	for _, name := range names.own {
		n.names[name] = key
	}
	return names
}

// gatewayName is the switch's own name.
const gatewayName = "gateway"

// hashName is a name for a container whose id is no DNS name.
func hashName(key control.LinkKey) string {
	sum := sha256.Sum256([]byte(key.String()))
	return "c" + hex.EncodeToString(sum[:8])
}

func (n *network) freeNamesLocked(key control.LinkKey) {
	for name, holder := range n.names {
		if holder == key {
			delete(n.names, name)
		}
	}
}
