package plugin

import (
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// readResolvConf reads a resolver configuration (resolv.conf(5)) as host-local
// does for its key resolvConf. Name servers that are no addresses are left out:
// the result could not carry them.
func readResolvConf(path string) (types.DNS, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return types.DNS{}, err
	}
	var dns types.DNS
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasPrefix(words[0], "#") || strings.HasPrefix(words[0], ";") {
			continue
		}
		switch words[0] {
		case "nameserver":
			if _, err := netip.ParseAddr(words[1]); err == nil {
				dns.Nameservers = append(dns.Nameservers, words[1])
			}
		case "domain":
			dns.Domain = words[1]
		case "search":
			dns.Search = append(dns.Search, words[1:]...)
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return dns, nil
}
