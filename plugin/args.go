package plugin

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/tunnel"
)

// cniArgs are the key-value pairs of CNI_ARGS that usernet acts on.
type cniArgs struct {
	IPs      []string // IP=, comma-separated
	MAC      string   // MAC=
	Gateway  string   // GATEWAY=, an argument of the static IPAM plugin
	Hostname string   // the container's name for DNS
	Sticky   string   // the container's name for ipam.sticky; empty: unknown
}

// parseArgs reads CNI_ARGS ("K=V;K=V"). It splits at the first '=' only: the
// values of labels hold more of them, and types.LoadArgs dies of those. Keys
// that nobody knows are an error unless IgnoreUnknown says otherwise, by the
// convention of the CNI libraries.
func parseArgs(s string) (cniArgs, error) {
	var (
		args    cniArgs
		unknown []string
		ignore  bool
		podName string
		podNS   string
	)
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return args, fail(types.ErrInvalidEnvironmentVariables, "invalid environment: CNI_ARGS=%q: %q is not KEY=VALUE", s, pair)
		}
		switch {
		case key == "IP":
			args.IPs = splitList(value)
		case key == "MAC":
			args.MAC = value
		case key == "GATEWAY":
			args.Gateway = value
		case key == "IgnoreUnknown":
			// "1" of podman and CRI, "true" of Nomad.
			ignore = value == "1" || strings.EqualFold(value, "true") || strings.EqualFold(value, "yes")
		case key == "K8S_POD_NAME":
			podName = value
		case key == "K8S_POD_NAMESPACE":
			podNS = value
		case key == "NERDCTL_CNI_DHCP_HOSTNAME":
			args.Hostname = value
		case informative(key):
		default:
			unknown = append(unknown, key)
		}
	}
	args.Sticky = args.Hostname
	if podName != "" {
		// Podman gives a container's name here, and no namespace.
		args.Sticky = podNS + "/" + podName
	}
	if args.Hostname == "" {
		args.Hostname = podHostname(podName, podNS)
	}
	if len(unknown) > 0 && !ignore {
		return args, fail(types.ErrInvalidEnvironmentVariables,
			"invalid environment: CNI_ARGS=%q: unknown key %s; known are IP, MAC, GATEWAY, K8S_*, or say IgnoreUnknown=1",
			s, strings.Join(unknown, ", "))
	}
	return args, nil
}

// podHostname is the name of a pod, or of podman's container, in DNS: with its
// namespace, because pods of one name in two namespaces are strangers, and
// neither may answer for the other by having come first. Kubernetes allows names
// that are longer than DNS does: those have none.
func podHostname(name, namespace string) string {
	if namespace != "" {
		name += "." + namespace
	}
	if !control.ValidDNSName(name) {
		return ""
	}
	return name
}

// informative reports whether a key tells who the container is and asks for
// nothing.
func informative(key string) bool {
	for _, prefix := range []string{"K8S_", "NERDCTL_", "NOMAD_", "CONSUL_"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// splitList splits at commas, dropping what is empty.
func splitList(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// wantedIPs returns the addresses that the runtime asks for. Of the three
// places to ask (CONVENTIONS.md), runtimeConfig beats args.cni beats CNI_ARGS,
// family by family: nerdctl gives the IPv4 address in CNI_ARGS and the IPv6
// address as a capability argument, and means both.
//
// keys names the places that had a say, with what they said.
func (c *config) wantedIPs(args cniArgs) (wanted []netip.Addr, keys []string, err error) {
	var have4, have6 bool
	for _, source := range []struct {
		key  string
		list []string
	}{
		{"runtimeConfig.ips", c.Runtime.IPs},
		{"args.cni.ips", c.ArgsCNI.IPs},
		{"CNI_ARGS IP", args.IPs},
	} {
		var this4, this6 bool
		before := len(wanted)
		for _, s := range source.list {
			a, err := parseIP(s)
			if err != nil {
				return nil, nil, badValue(source.key, s, err.Error())
			}
			if a.Is4() && !have4 || a.Is6() && !have6 {
				wanted = append(wanted, a)
			}
			this4, this6 = this4 || a.Is4(), this6 || a.Is6()
		}
		have4, have6 = have4 || this4, have6 || this6
		if len(wanted) > before {
			keys = append(keys, fmt.Sprintf("%q %s", source.key, compact(source.list)))
		}
	}
	return wanted, keys, nil
}

// parseIP takes an address with or without a prefix length: podman sends none.
func parseIP(s string) (netip.Addr, error) {
	host, _, prefixed := strings.Cut(s, "/")
	if prefixed {
		if _, err := netip.ParsePrefix(s); err != nil {
			return netip.Addr{}, fmt.Errorf("want an address, or one with its prefix length")
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("want an IPv4 or IPv6 address")
	}
	return a.Unmap(), nil
}

// wantedMAC returns the address that the interface of a TAP is to have and that
// is reported for a TUN: the one asked for, by the same precedence, or none.
func (c *config) wantedMAC(args cniArgs) (net.HardwareAddr, error) {
	for _, source := range []struct{ key, mac string }{
		{"runtimeConfig.mac", c.Runtime.MAC},
		{"args.cni.mac", c.ArgsCNI.MAC},
		{"CNI_ARGS MAC", args.MAC},
	} {
		if source.mac == "" {
			continue
		}
		mac, err := parseMAC(source.key, source.mac)
		if err != nil {
			return nil, err
		}
		if c.tap() && slices.Equal(mac, tunnel.DefaultGatewayMAC) {
			return nil, badValue(source.key, source.mac, "it is the gateway's MAC address; choose another")
		}
		return mac, nil
	}
	return nil, nil
}
