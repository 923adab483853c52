package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
)

// config is a network configuration as the plugin gets it on its standard input
// (SPEC.md "Execution request"). In one of type "usernet" unknown keys are
// errors, except those that the specification reserves.
type config struct {
	// CNIVersion is the version that the result is printed in. Empty: 0.1.0.
	CNIVersion string
	// Name of the network; two configurations of one name share a switch.
	Name string
	// Socket is the daemon's control socket, an absolute path. Empty:
	// control.DefaultSocket.
	Socket string
	// Device is the kind of the container's interface, control.DeviceTUN or
	// control.DeviceTAP. The key "device", default "tun".
	Device string
	// Bandwidth is what the configuration itself limits.
	Bandwidth bandwidth
	// MTU of the device in bytes. 0: the network's.
	MTU int
	// Internal networks have no way out: no egress, no default route.
	Internal bool
	// Policy is what the network's containers may reach besides the outside.
	Policy control.PolicyWishes
	// Autostart lets ADD, GC and STATUS start the daemon when nothing serves
	// the socket. The key "autostart", default true.
	Autostart bool
	// Publish says how port mappings become reachable. The key "publish".
	Publish publishConf
	// Routes of the container besides those of IPAM, or besides the default
	// routes, of which they replace those of the same destination.
	Routes []*types.Route
	// Sysctls of the container's namespace, by key as the configuration has it.
	Sysctls map[string]string
	// HostAccess lets the host reach the containers. Off by default.
	HostAccess hostAccess
	// IPAM says where addresses come from.
	IPAM ipamConfig
	// DNS is what the result tells the runtime; what is empty the daemon fills
	// (the gateway answers as name server).
	DNS types.DNS
	// Runtime holds the capability arguments (runtimeConfig).
	Runtime runtimeConfig
	// ArgsCNI holds args.cni (CONVENTIONS.md).
	ArgsCNI argsCNI
	// PrevResult is the result of the plugin before this one, or, for CHECK and
	// DEL, of the ADD. nil: none.
	PrevResult json.RawMessage
	// Valid are GC's attachments that are still there.
	Valid []types.GCAttachment
	// Overlooked are the faults that a lenient judge let pass; nil: none.
	Overlooked error
	// Bridge holds what the drop-in name bridge alone has; nil under other names.
	Bridge *bridgeConf
	// Tuning and TuningArgs are what the drop-in name tuning sets, by its own
	// keys and by args.cni.
	Tuning, TuningArgs tuningConf
	// HostLocal holds what the drop-in name host-local alone has; nil under other
	// names.
	HostLocal *hostLocalConf
	// Domain is the drop-in name dnsname's, without dots at its ends.
	Domain string
}

// argsCNI is the part of "args" that CONVENTIONS.md gives a meaning and that
// usernet acts on.
type argsCNI struct {
	IPs     []string          `json:"ips"`
	MAC     string            `json:"mac"`
	Sysctls map[string]string `json:"sysctl"` // beat the configuration's, key by key
}

// field decodes the value of one key into a config.
type field func(c *config, raw json.RawMessage) error

// fields is the whole schema of type "usernet". A nil entry is a key that is
// known and means nothing to the plugin: type chose it, capabilities are the
// runtime's, and the rest are keys of the list around it that some runtimes
// leave in.
var fields = map[string]field{
	"cniVersion":                func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, &c.CNIVersion) },
	"name":                      decodeName,
	"socket":                    decodeSocket,
	"device":                    decodeDevice,
	"mtu":                       decodeMTU,
	"ingressRate":               limit(func(b *bandwidth) *uint64 { return &b.IngressRate }),
	"ingressBurst":              limit(func(b *bandwidth) *uint64 { return &b.IngressBurst }),
	"egressRate":                limit(func(b *bandwidth) *uint64 { return &b.EgressRate }),
	"egressBurst":               limit(func(b *bandwidth) *uint64 { return &b.EgressBurst }),
	"internal":                  func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, &c.Internal) },
	"ingressPolicy":             decodeIngressPolicy,
	"portIsolation":             func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, &c.Policy.PortIsolation) },
	"hairpin":                   func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, &c.Policy.Hairpin) },
	"autostart":                 func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, &c.Autostart) },
	"publish":                   decodePublish,
	"routes":                    decodeRoutes,
	"sysctl":                    func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, &c.Sysctls) },
	"hostAccess":                decodeHostAccess,
	"ipam":                      decodeIPAM,
	"dns":                       decodeDNS,
	"runtimeConfig":             decodeRuntime,
	"args":                      decodeArgs,
	"prevResult":                decodePrevResult,
	"cni.dev/valid-attachments": decodeValid,
	"cni.dev/attachments":       decodeValid, // what libcni 1.1 to 1.3 sends as well
	"type":                      nil,
	"capabilities":              nil,
	"cniVersions":               nil,
	"disableCheck":              nil,
	"disableGC":                 nil,
	"loadOnlyInlinedPlugins":    nil,
}

// schema is what a configuration may say.
type schema struct {
	fields   map[string]field
	tolerant bool          // keys that are not among fields are ignored
	defaults func() config // what a configuration starts from
	settle   func(*config) // draws conclusions from all keys, of a lenient judgement too; nil: none
}

// nativeSchema is that of type "usernet".
var nativeSchema = schema{fields: fields, defaults: func() config {
	return config{Device: control.DeviceTUN, Autostart: true, IPAM: ipamConfig{Type: nativeIPAM}}
}}

// strictness says what to do with a configuration that is not quite right.
type strictness int

const (
	// strict reports every fault.
	strict strictness = iota
	// lenient takes what can be understood. For DEL, which must succeed on a
	// configuration that was edited since the ADD.
	lenient
)

// parse decodes and judges a configuration. Faults are reported all at once,
// under the code of the first; text that is no JSON object is code 6.
func (s *schema) parse(data []byte, how strictness) (*config, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return nil, fail(types.ErrDecodingFailure, "decode the network configuration on standard input: %v", err)
	}
	c := new(config)
	*c = s.defaults()
	var faults []*types.Error
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		decode, known := s.fields[key]
		switch {
		case !known && (s.tolerant || strings.HasPrefix(key, "cni.dev/")): // the latter are the runtime's
		case !known:
			faults = append(faults, unsupported(key, keys[key], unknownKey(key, s.fields)))
		case decode != nil && string(keys[key]) != "null":
			if err := decode(c, keys[key]); err != nil {
				faults = append(faults, fieldError(key, keys[key], err))
			}
		}
	}
	if s.settle != nil {
		s.settle(c)
	}
	if how == lenient {
		c.Overlooked = joinFaults(faults)
		faults = slices.DeleteFunc(faults, func(e *types.Error) bool { return e.Code != types.ErrDecodingFailure })
	} else {
		faults = append(faults, c.disagreements()...)
	}
	if c.Name == "" && len(faults) == 0 {
		faults = append(faults, fail(types.ErrInvalidNetworkConfig, `missing key "name": the network's name`))
	}
	return c, joinFaults(faults)
}

// disagreements are the faults of keys that are right each for itself.
func (c *config) disagreements() []*types.Error {
	faults := c.Bridge.settle(c)
	if err := c.Bandwidth.check(""); err != nil {
		faults = append(faults, err)
	}
	if err := c.IPAM.checkDHCP(c.tap()); err != nil {
		faults = append(faults, err)
	}
	faults = append(faults, c.sysctlFaults()...)
	if c.MTU != 0 && c.MTU < minMTU(c) {
		faults = append(faults, badValue("mtu", c.MTU, "IPv6 needs at least 1280 (RFC 8200 section 5)"))
	}
	return faults
}

// joinFaults makes one CNI error of several.
func joinFaults(faults []*types.Error) error {
	if len(faults) == 0 {
		return nil
	}
	texts := make([]string, len(faults))
	for i, f := range faults {
		texts[i] = f.Error()
	}
	return types.NewError(faults[0].Code, strings.Join(texts, "; "), "")
}

// fieldError gives what a decoder returned the key and the value it is about.
func fieldError(key string, raw json.RawMessage, err error) *types.Error {
	if cni, ok := errors.AsType[*types.Error](err); ok {
		return cni
	}
	return badValue(key, raw, err.Error())
}

// unknownKey is the remedy for a key that the schema does not have.
func unknownKey[T any](key string, schema map[string]T) string {
	for _, k := range slices.Sorted(maps.Keys(schema)) {
		if strings.EqualFold(k, key) {
			return fmt.Sprintf("keys are case-sensitive; did you mean %q?", k)
		}
	}
	return fmt.Sprintf("unknown key; known are %s", strings.Join(slices.Sorted(maps.Keys(schema)), ", "))
}

// decodeStrict decodes an object whose keys must all be known to v.
func decodeStrict(raw json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

func decodeName(c *config, raw json.RawMessage) error {
	var name string
	if err := json.Unmarshal(raw, &name); err != nil {
		return err
	}
	if !nameChars.MatchString(name) {
		return fmt.Errorf("want letters, digits, '_', '.' and '-', starting with a letter or digit")
	}
	c.Name = name
	return nil
}

func decodeSocket(c *config, raw json.RawMessage) error {
	var path string
	if err := json.Unmarshal(raw, &path); err != nil {
		return err
	}
	const most = 107 // sun_path of unix(7) less its terminating zero
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("want an absolute path")
	case len(path) > most:
		return fmt.Errorf("%d bytes long, the kernel allows %d for a socket", len(path), most)
	}
	c.Socket = path
	return nil
}

func decodeDevice(c *config, raw json.RawMessage) error {
	var device string
	if err := json.Unmarshal(raw, &device); err != nil {
		return err
	}
	if device != control.DeviceTUN && device != control.DeviceTAP {
		return unsupported("device", raw, `want "tun" (IP packets, the default) or "tap" (Ethernet frames, a real MAC address)`)
	}
	c.Device = device
	return nil
}

// decodeIngressPolicy takes the values of the reference plugin firewall.
func decodeIngressPolicy(c *config, raw json.RawMessage) error {
	var p string
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	switch p {
	case control.IngressOpen, control.IngressSameBridge, control.IngressIsolated, "":
		c.Policy.IngressPolicy = p
		return nil
	}
	return unsupported("ingressPolicy", raw, `want "open" (containers of other open networks too), "same-bridge" (those of this network, the default) or "isolated" (none)`)
}

// tap reports whether the container's interface is a TAP.
func (c *config) tap() bool { return c.Device == control.DeviceTAP }

// routing returns which default routes a container gets. The reference plugin
// bridge adds one only as the default gateway; otherwise its IPAM plugin says.
func (c *config) routing() routing {
	switch {
	case c.Bridge != nil && c.Bridge.IsDefaultGateway:
		return routeAlways
	case c.Bridge != nil, c.Internal:
		return routeNever
	}
	return routeUnlessConfigured
}

// The limits of an MTU: RFC 791's smallest, and the largest of an IP packet.
const (
	minMTUv4 = 68
	minMTUv6 = 1280
	maxMTU   = 65535
)

func decodeMTU(c *config, raw json.RawMessage) error {
	if err := json.Unmarshal(raw, &c.MTU); err != nil {
		return err
	}
	if c.MTU != 0 && (c.MTU < minMTUv4 || c.MTU > maxMTU) {
		return fmt.Errorf("want 0 (the network's) or %d to %d bytes", minMTUv4, maxMTU)
	}
	return nil
}

// minMTU returns the smallest MTU that the configured ranges allow.
func minMTU(c *config) int {
	for _, set := range c.IPAM.Sets {
		for _, r := range set {
			if r.Subnet.Addr().Is6() {
				return minMTUv6
			}
		}
	}
	return minMTUv4
}

func decodeDNS(c *config, raw json.RawMessage) error {
	var dns types.DNS
	if err := decodeStrict(raw, &dns); err != nil {
		return err
	}
	if err := checkNameservers("dns.nameservers", dns.Nameservers); err != nil {
		return err
	}
	c.DNS = dns
	return nil
}

// checkNameservers refuses what podman and resolv.conf(5) would.
func checkNameservers(key string, servers []string) error {
	for _, s := range servers {
		if _, err := netip.ParseAddr(s); err != nil {
			return badValue(key, s, "want an IPv4 or IPv6 address")
		}
	}
	return nil
}

func decodeArgs(c *config, raw json.RawMessage) error {
	var args struct {
		CNI json.RawMessage `json:"cni"`
	}
	// What else is in args is metadata for others; even its form is theirs.
	if err := json.Unmarshal(raw, &args); err != nil || len(args.CNI) == 0 {
		return err
	}
	return json.Unmarshal(args.CNI, &c.ArgsCNI)
}

func decodePrevResult(c *config, raw json.RawMessage) error {
	c.PrevResult = raw
	return nil
}

func decodeValid(c *config, raw json.RawMessage) error {
	var valid []types.GCAttachment
	if err := json.Unmarshal(raw, &valid); err != nil {
		return err
	}
	for _, a := range valid {
		if a.ContainerID == "" || a.IfName == "" {
			return fmt.Errorf("an attachment needs containerID and ifname")
		}
		if !slices.Contains(c.Valid, a) {
			c.Valid = append(c.Valid, a)
		}
	}
	return nil
}
