package plugin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
)

// runtimeConfig holds the capability arguments that the runtime gave
// (CONVENTIONS.md "Dynamic Plugin specific fields"). Their keys are matched
// without regard to case below the capability's name, because go-cni marshals
// Go structs without tags: {"HostPort":80}.
type runtimeConfig struct {
	PortMappings []portMapping
	IPs          []string
	MAC          string
	DNS          *runtimeDNS
	IPRanges     [][]control.Range
	Aliases      []string
	Bandwidth    bandwidth
}

// portMapping is one entry of the capability portMappings.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp or udp in any case; empty: tcp
	HostIP        string `json:"hostIP"`   // empty: every address of the host
}

// runtimeDNS is the capability dns; what it gives replaces the key dns of the
// configuration.
type runtimeDNS struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

// capability decodes and judges the argument of one capability.
type capability func(c *config, raw json.RawMessage) error

// capabilities are those that conflists may declare. A nil entry is one that
// tells something and asks for nothing.
var capabilities = map[string]capability{
	"portMappings":                      decodePortMappings,
	"ips":                               decodeIPs,
	"mac":                               decodeMAC,
	"dns":                               decodeRuntimeDNS,
	"ipRanges":                          decodeIPRanges,
	"aliases":                           decodeAliases,
	"bandwidth":                         decodeBandwidth,
	"cgroupPath":                        nil,
	"io.kubernetes.cri.pod-annotations": nil,
}

func decodeRuntime(c *config, raw json.RawMessage) error {
	var args map[string]json.RawMessage
	if err := json.Unmarshal(raw, &args); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(args)) {
		key, value := "runtimeConfig."+name, args[name]
		if isEmptyJSON(value) {
			continue // declared, and nothing asked
		}
		decode, known := capabilities[name]
		if !known {
			return fail(ErrCapability, "capability argument %q: %s: usernet cannot honour it; remove %q from the configuration's capabilities",
				key, compact(value), name)
		}
		if decode == nil {
			continue
		}
		if err := decode(c, value); err != nil {
			return fieldError(key, value, err)
		}
	}
	return nil
}

// isEmptyJSON reports whether a value asks for nothing.
func isEmptyJSON(raw json.RawMessage) bool {
	switch strings.TrimSpace(string(raw)) {
	case "null", "[]", "{}", `""`:
		return true
	}
	return false
}

func decodePortMappings(c *config, raw json.RawMessage) error {
	var list []portMapping
	if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	for i := range list {
		m := &list[i]
		m.Protocol = strings.ToLower(m.Protocol)
		if m.Protocol == "" {
			m.Protocol = "tcp"
		}
		if err := m.check(); err != nil {
			return err
		}
	}
	c.Runtime.PortMappings = list
	return nil
}

// check judges one mapping. Every error tells the entry it is about.
func (m *portMapping) check() error {
	const key = "runtimeConfig.portMappings"
	switch {
	case m.Protocol == "sctp":
		return fail(ErrCapability, "capability argument %q: %s: sctp cannot be published; only tcp and udp can", key, compact(m))
	case m.Protocol != "tcp" && m.Protocol != "udp":
		return badValue(key, m, "protocol must be tcp or udp")
	case m.HostPort < 1 || m.HostPort > 65535:
		return badValue(key, m, "hostPort must be 1 to 65535")
	case m.ContainerPort < 1 || m.ContainerPort > 65535:
		return badValue(key, m, "containerPort must be 1 to 65535")
	}
	if m.HostIP != "" {
		if _, err := netip.ParseAddr(m.HostIP); err != nil {
			return badValue(key, m, "hostIP must be an IPv4 or IPv6 address")
		}
	}
	return nil
}

func decodeIPs(c *config, raw json.RawMessage) error {
	return json.Unmarshal(raw, &c.Runtime.IPs)
}

func decodeMAC(c *config, raw json.RawMessage) error {
	return json.Unmarshal(raw, &c.Runtime.MAC)
}

// parseMAC judges a wanted MAC address. That of a TUN is only reported (see the
// package comment), but a runtime that asks for nonsense should hear of it.
func parseMAC(key, s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	switch {
	case err != nil || len(mac) != 6:
		return nil, badValue(key, s, "want six bytes like 02:42:ac:11:00:02")
	case mac[0]&1 != 0:
		return nil, badValue(key, s, "a multicast address cannot be an interface's; clear the lowest bit of the first byte")
	case slices.Equal(mac, make(net.HardwareAddr, 6)):
		return nil, badValue(key, s, "all zero")
	}
	return mac, nil
}

func decodeRuntimeDNS(c *config, raw json.RawMessage) error {
	var dns runtimeDNS
	if err := json.Unmarshal(raw, &dns); err != nil {
		return err
	}
	if err := checkNameservers("runtimeConfig.dns.servers", dns.Servers); err != nil {
		return err
	}
	c.Runtime.DNS = &dns
	return nil
}

func decodeIPRanges(c *config, raw json.RawMessage) error {
	var sets [][]control.Range
	if err := json.Unmarshal(raw, &sets); err != nil {
		return err
	}
	if err := checkSets("runtimeConfig.ipRanges", sets); err != nil {
		return err
	}
	c.Runtime.IPRanges = sets
	return nil
}

// decodeAliases takes both forms in use: the list of CONVENTIONS.md, and the
// object by network name that podman and CRI-O send.
func decodeAliases(c *config, raw json.RawMessage) error {
	if err := json.Unmarshal(raw, &c.Runtime.Aliases); err == nil {
		return nil
	}
	var byNetwork map[string][]string
	if err := json.Unmarshal(raw, &byNetwork); err != nil {
		return fmt.Errorf("want a list of names, or an object of such lists by network name")
	}
	// The keys are sorted so c.Name, at "name", may not be known yet: "args" <
	// "name" < "runtimeConfig" makes it known here.
	c.Runtime.Aliases = byNetwork[c.Name]
	return nil
}

// sets returns the ranges to lease from. Those of the runtime come first, as
// with host-local.
func (c *config) sets() [][]control.Range {
	return append(slices.Clone(c.Runtime.IPRanges), c.IPAM.Sets...)
}

// dns returns the resolver configuration to ask the daemon for; the
// capability's fields replace the configuration's.
func (c *config) dns() types.DNS {
	dns := *c.DNS.Copy()
	if rt := c.Runtime.DNS; rt != nil {
		if len(rt.Servers) > 0 {
			dns.Nameservers = rt.Servers
		}
		if len(rt.Searches) > 0 {
			dns.Search = rt.Searches
		}
		if len(rt.Options) > 0 {
			dns.Options = rt.Options
		}
	}
	return dns
}
