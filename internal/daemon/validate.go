package daemon

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/tunnel"
)

// maxPath is PATH_MAX less its terminating NUL (linux/limits.h); maxSticky
// leaves room for a namespace and a pod's name, at their longest, in a lease.
const (
	maxPath   = 4095
	maxSticky = 512
)

// checkAttach checks everything about a request that can be checked without
// the world. Addresses are unmapped in place.
func (d *Daemon) checkAttach(req *control.AttachRequest) error {
	if err := req.Key().Validate(); err != nil {
		return err
	}
	if err := checkMTU(req.MTU); err != nil {
		return err
	}
	if err := d.checkWhere(req.BootID, req.NetnsPath); err != nil {
		return err
	}
	if err := checkPinned(req); err != nil {
		return err
	}
	if err := checkDevice(req); err != nil {
		return err
	}
	if err := checkAttachAddrs(req); err != nil {
		return err
	}
	if err := checkWishes(&amendable{Hostname: req.Hostname, Aliases: req.Aliases, Bandwidth: req.Bandwidth}); err != nil {
		return err
	}
	for i := range req.Publications {
		if err := checkPublication(&req.Publications[i]); err != nil {
			return err
		}
	}
	return checkDNSConf(req.DNS)
}

// checkWhere checks what a request says of the container's place.
func (d *Daemon) checkWhere(bootID, netnsPath string) error {
	if bootID != "" && bootID != d.bootID {
		return control.Errorf(control.CodeInvalid, "bootID %q is not this machine's boot %q: the caller's and the daemon's machines differ", bootID, d.bootID)
	}
	if netnsPath != "" && (!strings.HasPrefix(netnsPath, "/") || len(netnsPath) > maxPath || strings.ContainsRune(netnsPath, 0)) {
		return control.Errorf(control.CodeInvalid, "netnsPath %.60q: want an absolute path of at most %d bytes", netnsPath, maxPath)
	}
	return nil
}

func checkSticky(name string) error {
	if len(name) > maxSticky || strings.ContainsFunc(name, unicode.IsControl) {
		return control.Errorf(control.CodeInvalid, "sticky %.60q: want a name of at most %d bytes without control characters", name, maxSticky)
	}
	return nil
}

// checkIPs checks wanted addresses, which are unmapped in place.
func checkIPs(ips []netip.Addr) error {
	seen := map[netip.Addr]bool{}
	for i, a := range ips {
		ips[i] = a.Unmap()
		if !a.IsValid() || a.Zone() != "" || seen[a] {
			return control.Errorf(control.CodeInvalid, "ips: %q is no address, has a zone, or comes twice", a)
		}
		seen[a] = true
	}
	return nil
}

// maxAliases bounds a link's further names: the table of names is rebuilt
// whenever links come or go.
const maxAliases = 256

// maxBurst bounds a burst, in bits, as the reference plugin bandwidth does:
// less than 4 GiB.
const maxBurst = 1<<35 - 1

// dnsLabels is what a name has to be.
const dnsLabels = "want DNS labels of letters, digits, '-' and '_', 63 bytes each at most"

// checkWishes checks what an attach or an amendment wishes of a link.
func checkWishes(w *amendable) error {
	if w.Hostname != "" && !control.ValidDNSName(w.Hostname) {
		return control.Errorf(control.CodeInvalid, "hostname %q: %s", w.Hostname, dnsLabels)
	}
	if len(w.Aliases) > maxAliases {
		return control.Errorf(control.CodeInvalid, "%d aliases, the limit is %d", len(w.Aliases), maxAliases)
	}
	for _, a := range w.Aliases {
		if !control.ValidDNSName(a) {
			return control.Errorf(control.CodeInvalid, "alias %q: %s", a, dnsLabels)
		}
	}
	if w.Bandwidth == nil {
		return nil
	}
	for name, r := range map[string]control.Rate{"fromContainer": w.Bandwidth.FromContainer, "toContainer": w.Bandwidth.ToContainer} {
		switch {
		case r.BitsPerSecond == 0 && r.BurstBits > 0:
			return control.Errorf(control.CodeInvalid, "bandwidth: %s has burstBits %d without bitsPerSecond; a burst needs a rate", name, r.BurstBits)
		case r.BurstBits > maxBurst:
			return control.Errorf(control.CodeInvalid, "bandwidth: %s has burstBits %d, want less than 4 GiB (%d bits)", name, r.BurstBits, maxBurst)
		}
	}
	return nil
}

// checkDevice checks the kind of the device and its MAC address, which is
// brought into the usual form in place.
func checkDevice(req *control.AttachRequest) error {
	switch req.Device {
	case "", control.DeviceTUN, control.DeviceTAP:
	default:
		return control.Errorf(control.CodeInvalid, "device %q: want %q or %q", req.Device, control.DeviceTUN, control.DeviceTAP)
	}
	if req.MAC == "" {
		return nil
	}
	mac, err := net.ParseMAC(req.MAC)
	switch {
	case req.Device != control.DeviceTAP:
		return control.Errorf(control.CodeInvalid, "mac %q: only a TAP has a MAC address; ask for device %q, or leave it out", req.MAC, control.DeviceTAP)
	case err != nil || len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{}:
		return control.Errorf(control.CodeInvalid, "mac %q: want six bytes that name one interface, not a group", req.MAC)
	case slices.Equal(mac, tunnel.DefaultGatewayMAC):
		return control.Errorf(control.CodeInvalid, "mac %q is the gateway's; want another", req.MAC)
	}
	req.MAC = mac.String()
	return nil
}

func checkAttachAddrs(req *control.AttachRequest) error {
	if req.Unaddressed && len(req.Addrs)+len(req.Sets)+len(req.IPs)+len(req.Publications) > 0 {
		return control.Errorf(control.CodeInvalid, "unaddressed excludes addrs, sets, ips and publications")
	}
	if len(req.Addrs) > 0 && (len(req.Sets) > 0 || len(req.IPs) > 0) {
		return control.Errorf(control.CodeInvalid, "addrs (leased elsewhere) exclude sets and ips (to be leased here)")
	}
	if len(req.Gateways) > 0 && len(req.Addrs) == 0 {
		return control.Errorf(control.CodeInvalid, "gateways %v without addrs: the gateways of ranges are in sets", req.Gateways)
	}
	if req.Sticky != "" && len(req.Addrs) > 0 {
		return control.Errorf(control.CodeInvalid, "sticky %.60q with addrs: addresses leased elsewhere cannot be kept here", req.Sticky)
	}
	if err := checkSticky(req.Sticky); err != nil {
		return err
	}
	if err := checkIPs(req.IPs); err != nil {
		return err
	}
	seen := map[netip.Addr]bool{}
	for i, p := range req.Addrs {
		if !p.IsValid() || p.Addr().Is4In6() || seen[p.Addr()] {
			return control.Errorf(control.CodeInvalid, "addrs: %v is no address with a prefix length, or comes twice", p)
		}
		seen[p.Addr()] = true
		for _, q := range req.Addrs[:i] {
			if p.Addr().Is4() == q.Addr().Is4() && p.Masked() != q.Masked() {
				return control.Errorf(control.CodeInvalid, "addrs: %v and %v are of different subnets; a network has one per family", q, p)
			}
		}
	}
	for i, g := range req.Gateways {
		if g.IsValid() { // absent gateways of a family come as invalid ones
			req.Gateways[i] = g.Unmap()
		}
	}
	return nil
}

func checkPublication(p *control.PublicationSpec) error {
	p.Proto = strings.ToLower(p.Proto)
	switch {
	case p.Proto != "tcp" && p.Proto != "udp":
		return control.Errorf(control.CodeInvalid, "publication of port %d: protocol %q, want tcp or udp", p.Port, p.Proto)
	case p.Port == 0:
		return control.Errorf(control.CodeInvalid, "publication of host port %d: the container's port is 0", p.HostPort)
	case p.HostIP.IsValid() && (p.HostIP.IsMulticast() || p.HostIP.Unmap() == netip.AddrFrom4([4]byte{255, 255, 255, 255})):
		return control.Errorf(control.CodeInvalid, "publication of port %d: host address %v is not one of a host", p.Port, p.HostIP)
	case p.Redirect && (!p.FD || !p.HostIP.IsValid() || p.HostPort == 0):
		return control.Errorf(control.CodeInvalid, "publication of port %d: redirect needs fd, hostIP and hostPort", p.Port)
	}
	if p.HostIP.IsValid() {
		p.HostIP = p.HostIP.Unmap()
	}
	return nil
}

func checkDNSConf(c *control.DNSConf) error {
	if c == nil {
		return nil
	}
	for _, s := range slices.Concat(c.Nameservers) {
		if !s.IsValid() {
			return control.Errorf(control.CodeInvalid, "dns: a nameserver is no address")
		}
	}
	if d := strings.Trim(c.Domain, "."); d != "" && !control.ValidDNSName(d) {
		return control.Errorf(control.CodeInvalid, "dns: domain %q: %s", c.Domain, dnsLabels)
	}
	// They end as lines of a resolv.conf, where white space would begin
	// another word or line.
	for _, s := range slices.Concat(c.Search, c.Options) {
		if strings.ContainsAny(s, " \t\r\n\x00") || len(s) > 255 {
			return control.Errorf(control.CodeInvalid, "dns: %q holds white space or is over 255 bytes", s)
		}
	}
	return nil
}
