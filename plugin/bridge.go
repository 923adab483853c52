package plugin

import (
	"encoding/json"
	"maps"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/usernet/usernet/internal/control"
)

// bridgeDefaults are what a configuration of the drop-in name bridge starts
// from: where it differs from one of type usernet, its users expect what the
// reference plugin gives them.
func bridgeDefaults() config {
	return config{
		Device:    control.DeviceTAP, // a real MAC address, as a veth has
		Autostart: true,
		IPAM:      ipamConfig{Type: noIPAM}, // an interface without addresses
		// The node reaches containers behind a bridge that has an address.
		HostAccess: hostAccess{Enabled: true, IfName: "cni0"},
		Bridge:     &bridgeConf{},
	}
}

// bridgeConf holds the keys of the reference plugin bridge that mean something
// to usernet. The network is the switch of the list's name; it has the gateway
// addresses itself, whether or not the bridge was to have them.
type bridgeConf struct {
	IsGateway        bool // the host reaches the containers, as the gateway; the switch is it in any case
	IsDefaultGateway bool // a default route through it, besides the routes of ipam
	IPMasq           bool // a way out; without it the network is internal

	HairpinMode *bool             // false: a container does not reach its own published ports
	VLAN        int               // of an access port of the bridge, which has no bridge's other ports here
	VLANTrunk   []json.RawMessage // tagged frames to the container, which the switch does not carry
	PromiscMode bool
	Disabled    bool // disableContainerInterface

	hostAccess bool // the key "hostAccess" says itself what is wanted
}

// bridgeSchema is type usernet's, whose keys a list may use to say more, with
// the reference plugin's. Keys that neither knows are ignored, as the reference
// does: runtimes leave notes of their own there. Those of the reference that are
// nil have no effect because what they ask for is so in any case.
func bridgeSchema() *schema {
	all := maps.Clone(fields)
	maps.Copy(all, map[string]field{
		"bridge":                    decodeBridgeName,
		"hostAccess":                decodeBridgeHostAccess,
		"isGateway":                 ofBridge(func(b *bridgeConf) any { return &b.IsGateway }),
		"isDefaultGateway":          ofBridge(func(b *bridgeConf) any { return &b.IsDefaultGateway }),
		"ipMasq":                    ofBridge(func(b *bridgeConf) any { return &b.IPMasq }),
		"hairpinMode":               ofBridge(func(b *bridgeConf) any { return &b.HairpinMode }),
		"vlan":                      ofBridge(func(b *bridgeConf) any { return &b.VLAN }),
		"vlanTrunk":                 ofBridge(func(b *bridgeConf) any { return &b.VLANTrunk }),
		"promiscMode":               ofBridge(func(b *bridgeConf) any { return &b.PromiscMode }),
		"disableContainerInterface": ofBridge(func(b *bridgeConf) any { return &b.Disabled }),
		"ipam":                      decodeBridgeIPAM,
		"dns":                       decodeLooseDNS,

		"forceAddress":        nil, // the host's side is usernet's own and has the gateways' addresses
		"ipMasqBackend":       nil, // no rules are made
		"macspoofchk":         nil, // each container has a wire of its own, and source addresses are checked
		"enabledad":           nil, // addresses are leased, and nobody else is on the wire to have them too
		"preserveDefaultVlan": nil, // of vlan and vlanTrunk, which are refused
	})
	return &schema{fields: all, tolerant: true, defaults: bridgeDefaults}
}

// ofBridge decodes one key of the reference plugin.
func ofBridge(of func(*bridgeConf) any) field {
	return func(c *config, raw json.RawMessage) error { return json.Unmarshal(raw, of(c.Bridge)) }
}

// decodeBridgeName gives the host's side of the network the name that the bridge
// would have had: firewall rules and people look for it.
func decodeBridgeName(c *config, raw json.RawMessage) error {
	var name string
	if err := json.Unmarshal(raw, &name); err != nil || name == "" {
		return err
	}
	if why := ifNameFault(name); why != "" {
		return badValue("bridge", name, why)
	}
	c.HostAccess.IfName = name
	return nil
}

func decodeBridgeHostAccess(c *config, raw json.RawMessage) error {
	c.Bridge.hostAccess = true
	return decodeHostAccess(c, raw)
}

// decodeBridgeIPAM has the daemon lease what host-local would: its schema is
// the native one, and leases that the daemon holds end with their links. Other
// types are plugins to be run; no type at all is an interface without
// addresses.
func decodeBridgeIPAM(c *config, raw json.RawMessage) error {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return err
	}
	switch head.Type {
	case "":
		c.IPAM.Type = noIPAM
		return nil
	case nameHostLocal:
		return decodeHostLocal(c, raw)
	}
	return decodeIPAM(c, raw)
}

// decodeLooseDNS is decodeDNS that ignores keys it does not know.
func decodeLooseDNS(c *config, raw json.RawMessage) error {
	if err := json.Unmarshal(raw, &c.DNS); err != nil {
		return err
	}
	return checkNameservers("dns.nameservers", c.DNS.Nameservers)
}

// settle draws conclusions from the keys, and says which of them cannot be
// honoured.
func (b *bridgeConf) settle(c *config) []*types.Error {
	if b == nil {
		return nil
	}
	c.Internal = c.Internal || !b.IPMasq
	if !b.hostAccess && !b.IsGateway && !b.IsDefaultGateway || c.IPAM.Type == noIPAM {
		c.HostAccess.Enabled = false // such a bridge has no address
	}
	var faults []*types.Error
	refuse := func(key string, value any, remedy string) {
		faults = append(faults, unsupported(key, value, remedy))
	}
	switch {
	case b.VLAN < 0 || b.VLAN > 4094:
		faults = append(faults, badValue("vlan", b.VLAN, "want 0 to 4094"))
	case b.VLAN != 0:
		refuse("vlan", b.VLAN, "networks are no VLANs of a bridge, and are apart without; remove the key")
	}
	if len(b.VLANTrunk) > 0 {
		refuse("vlanTrunk", b.VLANTrunk, "tagged frames are not carried; make one network for each VLAN")
	}
	if b.PromiscMode && !c.tap() {
		refuse("promiscMode", true, `a TUN has no Ethernet frames; remove the key, or set "device": "tap"`)
	}
	if b.Disabled {
		refuse("disableContainerInterface", true, "an interface is brought up with its addresses; remove the key")
	}
	return faults
}

// noOwnPorts reports whether a container is not to reach the ports that are
// published for it, as behind the port of a bridge that sends nothing back where
// it came from. Only who says so gets that: left out it is false for the
// reference, too, but nobody relies on what does not work.
func (b *bridgeConf) noOwnPorts() bool {
	return b != nil && b.HairpinMode != nil && !*b.HairpinMode
}

// resultDNS is what the result tells of name servers. The daemon fills in what
// nobody said; in the place of the reference bridge that stays unsaid, because
// podman would use it instead of the host's, and adds dnsname where it wants
// the network's.
func (a *adding) resultDNS() types.DNS {
	switch {
	case a.conf.Bridge == nil:
		return dnsResult(a.link.Reply.DNS)
	case a.request.DNS == nil:
		return types.DNS{}
	}
	return dnsResult(*a.request.DNS)
}
