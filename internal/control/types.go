package control

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// APIVersion is the major version of the wire protocol; it is the number in
// the /v1 prefix of every route. Client and server exchange it in the
// [VersionHeader] of every request and reply.
const APIVersion = 1

// VersionHeader is the HTTP header that carries [APIVersion]. A reply without
// it does not come from usernet.
const VersionHeader = "Usernet-Api"

// LinkKey identifies one link: one interface of one container on one network.
type LinkKey struct {
	Network   string `json:"network"`
	Container string `json:"container"`
	IfName    string `json:"ifname"`
}

// String returns "network/container/ifname", which is also the link's ID.
func (k LinkKey) String() string { return k.Network + "/" + k.Container + "/" + k.IfName }

// ParseLinkKey is the inverse of [LinkKey.String]. None of the three parts
// may hold a slash, so the split is unambiguous.
func ParseLinkKey(id string) (LinkKey, error) {
	parts := strings.Split(id, "/")
	if len(parts) != 3 {
		return LinkKey{}, Errorf(CodeInvalid, "link id %q: want network/container/ifname", id)
	}
	k := LinkKey{Network: parts[0], Container: parts[1], IfName: parts[2]}
	return k, k.Validate()
}

// Range is one range of addresses to lease from, with the JSON names of the
// host-local IPAM plugin. Zero RangeStart, RangeEnd and Gateway are computed as
// host-local computes them: first usable, last usable, first usable address.
type Range struct {
	Subnet     netip.Prefix `json:"subnet"`
	RangeStart netip.Addr   `json:"rangeStart,omitzero"`
	RangeEnd   netip.Addr   `json:"rangeEnd,omitzero"`
	Gateway    netip.Addr   `json:"gateway,omitzero"`
}

// DNSConf is the resolver configuration of a container (resolv.conf(5)).
type DNSConf struct {
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Domain      string       `json:"domain,omitempty"` // the link's names answer below it, too, and its addresses resolve back to it
	Search      []string     `json:"search,omitempty"`
	Options     []string     `json:"options,omitempty"`
}

// The kinds of a container's device.
const (
	DeviceTUN = "tun" // layer 3: IP packets
	DeviceTAP = "tap" // layer 2: Ethernet frames, to a switch that answers for every neighbour
)

// Rate limits one direction of a link; burst bits may pass at once.
type Rate struct {
	BitsPerSecond uint64 `json:"bitsPerSecond,omitempty"` // of IP packets; 0: no limit
	BurstBits     uint64 `json:"burstBits,omitempty"`     // 0: what the rate carries in 50 ms
}

// Bandwidth limits what a link carries.
type Bandwidth struct {
	FromContainer Rate `json:"fromContainer,omitzero"`
	ToContainer   Rate `json:"toContainer,omitzero"`
}

// The ingress policies of a network: from where, besides the outside by way of
// publications, flows may come to its containers. They are the reference plugin
// firewall's.
const (
	IngressOpen       = "open"        // from containers of the same network, and of others that are open as well
	IngressSameBridge = "same-bridge" // from containers of the same network; the default
	IngressIsolated   = "isolated"    // from no container
)

// PolicyWishes say what a network's containers may reach besides the outside.
// What is absent stays as it is, and at first is the default.
type PolicyWishes struct {
	IngressPolicy string `json:"ingressPolicy,omitempty"` // "open", "same-bridge" (the default) or "isolated"
	PortIsolation *bool  `json:"portIsolation,omitempty"` // keeps the containers apart from each other; default false
	Hairpin       *bool  `json:"hairpin,omitempty"`       // lets them reach published ports at the host's addresses; default true
}

// AttachRequest asks for a link (POST /v1/links). The request carries
// descriptors: first the TUN or TAP, then one listening TCP socket or bound UDP
// socket for each of Publications that has FD set, in their order, and last,
// when one of them has Redirect set, the nf_tables socket of all redirects.
type AttachRequest struct {
	Network   string `json:"network"`             // name; letters, digits, "_.-", starts with a letter or digit
	Container string `json:"container"`           // the runtime's container id, same alphabet
	IfName    string `json:"ifname"`              // interface name inside the container, 1..15 bytes
	Netns     uint64 `json:"netns,omitempty"`     // inode of the container's network namespace; 0: unknown
	NetnsPath string `json:"netnsPath,omitempty"` // where the caller found it, absolute; by it a later daemon tells whether the namespace is still there
	Pinned    bool   `json:"pinned,omitempty"`    // the first descriptor was opened inside the namespace and keeps it alive: the daemon has to see its end at NetnsPath, or refuses with CodeUnwatched
	BootID    string `json:"bootID,omitempty"`    // /proc/sys/kernel/random/boot_id as the caller sees it; empty: the daemon's
	Owner     string `json:"owner,omitempty"`     // tag of the runtime; GC with the same tag judges this link. Empty is a tag too
	HostNetns uint64 `json:"hostNetns,omitempty"` // inode of the host's namespace that is to reach the link, by a host link (POST /v1/networks/{name}/hosts); 0: none

	Device string `json:"device,omitempty"` // kind of the first descriptor, "tun" or "tap"; empty: "tun"
	MAC    string `json:"mac,omitempty"`    // address that the interface of a TAP gets, told by GET /v1/links; empty: the one it has

	Bandwidth  *Bandwidth `json:"bandwidth,omitempty"`  // absent: no limit
	NoOwnPorts bool       `json:"noOwnPorts,omitempty"` // the container does not reach its own publications at the host's addresses

	Sets         [][]Range `json:"sets,omitempty"`        // creates the network when absent, must agree with it when present; one address per set
	Unaddressed  bool      `json:"unaddressed,omitempty"` // the link gets no address, and carries nothing; excludes Sets, Addrs and Publications
	Internal     bool      `json:"internal,omitempty"`    // of the network when this request creates it: no egress
	MTU          int       `json:"mtu,omitempty"`         // bytes; 0: the network's
	PolicyWishes           // of the network: made so, or amended if attaches made it, else a conflict when it differs

	IPs      []netip.Addr   `json:"ips,omitempty"`      // wanted addresses out of Sets
	Sticky   string         `json:"sticky,omitempty"`   // the container's name, when the last addresses of this name and ifname are to be had again; not with Addrs
	Addrs    []netip.Prefix `json:"addrs,omitempty"`    // addresses leased elsewhere (delegated IPAM): used exactly, nothing is leased
	Gateways []netip.Addr   `json:"gateways,omitempty"` // with Addrs: the gateway of each family; must be the network's when it exists

	Hostname     string            `json:"hostname,omitempty"` // name in the network's DNS
	Aliases      []string          `json:"aliases,omitempty"`  // further names in the network's DNS
	DNS          *DNSConf          `json:"dns,omitempty"`      // wishes; empty fields are filled in the reply
	Publications []PublicationSpec `json:"publications,omitempty"`
	Ephemeral    bool              `json:"ephemeral,omitempty"` // the link ends with this connection, even when committed
}

// Key returns the identity of the link that the request asks for.
func (r *AttachRequest) Key() LinkKey {
	return LinkKey{Network: r.Network, Container: r.Container, IfName: r.IfName}
}

// AttachReply describes a link that was made and is not committed yet: it ends
// when the connection closes before the commit (POST /v1/links/…/commit).
type AttachReply struct {
	ID           string         `json:"id"`       // LinkKey.String
	Addrs        []netip.Prefix `json:"addrs"`    // each with the length of its subnet
	Gateways     []netip.Addr   `json:"gateways"` // one per address, same order; invalid where the network has none for the family
	MTU          int            `json:"mtu"`      // bytes; set it on the interface
	DNS          DNSConf        `json:"dns"`
	Publications []Publication  `json:"publications,omitempty"` // in the request's order, host ports filled in
}

// AmendLinkRequest changes an attached link in its life (PATCH /v1/links/…).
// What is absent stays as it is.
type AmendLinkRequest struct {
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"` // replaces both directions; zero rates limit nothing
	Hostname  *string    `json:"hostname,omitempty"`  // empty takes it away
	Aliases   *[]string  `json:"aliases,omitempty"`   // replaces them all; empty takes them away
}

// PublicationSpec says which host address and port lead to which port of a link.
type PublicationSpec struct {
	Proto    string     `json:"proto"`              // "tcp" or "udp"
	HostIP   netip.Addr `json:"hostIP,omitzero"`    // zero: 127.0.0.1, or the descriptor's address with FD
	HostPort uint16     `json:"hostPort,omitempty"` // 0: the kernel chooses, the reply tells
	Port     uint16     `json:"port"`               // the container's port, never 0
	FD       bool       `json:"fd,omitempty"`       // the socket comes with the request; else the daemon opens it
	Redirect bool       `json:"redirect,omitempty"` // with FD: the socket is on another port, to which HostPort is redirected by rules that live as long as the nf_tables socket that comes last
}

// PublishRequest adds a publication to an existing link (POST
// /v1/publications). With FD set the request carries the one socket, and with
// Redirect set the nf_tables socket after it.
type PublishRequest struct {
	Link string `json:"link"` // any reference that GET /v1/links?ref= understands
	PublicationSpec
}

// PublishLinkRequest adds publications to one link, all of them or none (POST
// /v1/links/…/publications). It carries the descriptors of its publications as
// an attach does after the TUN.
type PublishLinkRequest struct {
	Publications []PublicationSpec `json:"publications"`
}

// UnpublishLinkRequest removes those publications of one link that one of the
// specs describes (POST /v1/links/…/unpublish). A spec without hostIP or
// hostPort describes those of all; what is not there is no error.
type UnpublishLinkRequest struct {
	Publications []PublicationSpec `json:"publications"`
}

// Publication is a host listener that leads to a link's port.
type Publication struct {
	ID         string     `json:"id"`
	Link       string     `json:"link"` // LinkKey.String
	Proto      string     `json:"proto"`
	HostIP     netip.Addr `json:"hostIP"`
	HostPort   uint16     `json:"hostPort"`
	Port       uint16     `json:"port"`
	SocketPort uint16     `json:"socketPort,omitempty"` // of a redirected publication: the port of its socket
}

// LinkState is where a link is in its life.
type LinkState string

// The states of a link.
const (
	LinkAttaching LinkState = "attaching" // made, its maker has not committed it yet
	LinkAttached  LinkState = "attached"  // committed
	LinkLost      LinkState = "lost"      // on record, but its descriptor went with an earlier daemon; DEL or GC forgets it
)

// Link is one link as GET /v1/links reports it.
type Link struct {
	ID           string         `json:"id"` // LinkKey.String
	Network      string         `json:"network"`
	Container    string         `json:"container"`
	IfName       string         `json:"ifname"`
	State        LinkState      `json:"state"`
	Owner        string         `json:"owner,omitempty"`
	Netns        uint64         `json:"netns,omitempty"` // inode
	Hostname     string         `json:"hostname,omitempty"`
	Aliases      []string       `json:"aliases,omitempty"`
	Names        []string       `json:"names,omitempty"` // the names that the network's DNS answers for it
	Addrs        []netip.Prefix `json:"addrs"`
	Gateways     []netip.Addr   `json:"gateways,omitempty"`
	HostNetns    uint64         `json:"hostNetns,omitempty"`  // inode of the host's namespace that is to reach it; 0: none
	HostIfName   string         `json:"hostIfName,omitempty"` // the interface there that does; empty: there is none
	MTU          int            `json:"mtu"`
	Bandwidth    *Bandwidth     `json:"bandwidth,omitempty"`
	Device       string         `json:"device"`        // "tun" or "tap"
	MAC          string         `json:"mac,omitempty"` // of a TAP, as it was attached
	Ephemeral    bool           `json:"ephemeral,omitempty"`
	Created      time.Time      `json:"created"`
	Publications []Publication  `json:"publications,omitempty"`
}

// Key returns the link's identity.
func (l *Link) Key() LinkKey {
	return LinkKey{Network: l.Network, Container: l.Container, IfName: l.IfName}
}

// LinksReply answers GET /v1/links.
type LinksReply struct {
	Links []Link `json:"links"` // sorted by ID
}

// DetachReply answers DELETE /v1/links/…; deleting what is not there succeeds. A
// lease of the same ID ends with the link.
type DetachReply struct {
	Removed bool `json:"removed"` // false: there was no link to remove
}

// HostService opens one service of the host to a network's containers: Name
// resolves to the gateway, whose port Target.Port leads to Target. It is the
// only way to the host's loopback.
type HostService struct {
	Name   string         `json:"name"`
	Target netip.AddrPort `json:"target"` // dialled on the host, may be loopback
}

// CreateNetworkRequest makes a network (POST /v1/networks). With neither Sets
// nor Subnets the daemon chooses one free subnet per family.
type CreateNetworkRequest struct {
	Name         string         `json:"name"`
	Sets         [][]Range      `json:"sets,omitempty"`
	Subnets      []netip.Prefix `json:"subnets,omitempty"` // short for one set of one whole subnet each; not together with Sets
	MTU          int            `json:"mtu,omitempty"`     // bytes; 0: 65520
	Internal     bool           `json:"internal,omitempty"`
	HostServices []HostService  `json:"hostServices,omitempty"`
	Allow        []netip.Prefix `json:"allow,omitempty"` // opened although refused by default (never loopback)
	PolicyWishes
}

// AmendNetworkRequest changes a network in its life (PATCH /v1/networks/{name}).
// Flows between containers that are no longer allowed end at once. A network of
// the configuration file is changed there.
type AmendNetworkRequest struct {
	PolicyWishes
}

// NetworkSource says who defined a network.
type NetworkSource string

// The sources of networks.
const (
	SourceAPI    NetworkSource = "api"    // POST /v1/networks; lives until DELETE
	SourceConfig NetworkSource = "config" // the daemon's configuration file; cannot be deleted through the API
	SourceAttach NetworkSource = "attach" // the Sets of an attach; a later attach may redefine it while it has no links
)

// Network is one network as GET /v1/networks reports it.
type Network struct {
	Name          string         `json:"name"`
	Source        NetworkSource  `json:"source"`
	Sets          [][]Range      `json:"sets"`
	Gateways      []netip.Prefix `json:"gateways"` // gateway addresses with their subnets' lengths
	MTU           int            `json:"mtu"`
	Internal      bool           `json:"internal,omitempty"`
	IngressPolicy string         `json:"ingressPolicy"` // "open", "same-bridge" or "isolated"
	PortIsolation bool           `json:"portIsolation,omitempty"`
	Hairpin       bool           `json:"hairpin"`
	HostServices  []HostService  `json:"hostServices,omitempty"`
	Allow         []netip.Prefix `json:"allow,omitempty"`
	Created       time.Time      `json:"created"`
	Links         []string       `json:"links"`           // IDs, sorted
	Hosts         []HostLink     `json:"hosts,omitempty"` // by netns
	Pool          PoolUsage      `json:"pool"`
}

// AttachHostRequest joins a namespace of the host's to a network (POST
// /v1/networks/{name}/hosts), so that the host reaches the containers' addresses.
// The request carries one descriptor, a TUN in that namespace, whose interface
// gets the network's gateways as addresses. The host link is there for links
// whose HostNetns is Netns, of which there must be one, and ends with the last of
// them, or with its device. It replaces one of the same namespace.
type AttachHostRequest struct {
	Netns   uint64 `json:"netns"`             // inode of the namespace that the TUN is in
	IfName  string `json:"ifname"`            // its interface there, for people
	Forward bool   `json:"forward,omitempty"` // also what the host forwards for others
}

// HostLink is a namespace of the host's on a network.
type HostLink struct {
	Netns   uint64            `json:"netns"` // inode
	IfName  string            `json:"ifname"`
	Forward bool              `json:"forward,omitempty"`
	Created time.Time         `json:"created"`
	Drops   map[string]uint64 `json:"drops,omitempty"` // by reason, of what came from the host or was meant for it
}

// PoolUsage counts a network's addresses; a count that would not fit is
// capped at 2^63-1 (IPv6).
type PoolUsage struct {
	Leased      int64 `json:"leased"`
	Quarantined int64 `json:"quarantined"` // free, but given out last of all
	Free        int64 `json:"free"`
	Exhausted   bool  `json:"exhausted,omitempty"` // some set has no address left
}

// NetworksReply answers GET /v1/networks.
type NetworksReply struct {
	Networks []Network `json:"networks"` // sorted by name
}

// LinkName is a container's interface without its network.
type LinkName struct {
	Container string `json:"container"`
	IfName    string `json:"ifname"`
}

// GCRequest removes the links and leases of one network (POST
// /v1/networks/{name}/gc) that bear the Owner tag and are not in Valid. A nil
// Valid means that none is valid. A network that does not exist has nothing to
// remove.
type GCRequest struct {
	Valid []LinkName `json:"valid"`
	Owner string     `json:"owner,omitempty"`
}

// GCReply lists what a collection removed.
type GCReply struct {
	Removed  []string `json:"removed"`  // IDs of links, sorted
	Released []string `json:"released"` // IDs of leases without a link, sorted
}

// PublicationsReply answers GET /v1/publications.
type PublicationsReply struct {
	Publications []Publication `json:"publications"`
}

// Counters are one direction-split set of counts.
type Counters struct {
	FromContainerPackets uint64 `json:"fromContainerPackets"`
	FromContainerBytes   uint64 `json:"fromContainerBytes"`
	ToContainerPackets   uint64 `json:"toContainerPackets"`
	ToContainerBytes     uint64 `json:"toContainerBytes"`
}

// Flow is one conversation as GET /v1/flows reports it.
type Flow struct {
	ID          uint64         `json:"id"` // unique in its network, ascending in time, for the daemon's life
	Network     string         `json:"network"`
	Link        string         `json:"link"`           // the container's link: its ID, or its name once it is gone; of peer flows the origin's
	Peer        string         `json:"peer,omitempty"` // the other link, container to container
	Direction   string         `json:"direction"`      // egress, ingress, peer, service, host
	Proto       string         `json:"proto"`          // tcp, udp, icmp, or a number
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Target      netip.AddrPort `json:"target,omitzero"`  // where it really leads when that is not Destination
	Verdict     string         `json:"verdict"`          // FORWARDED, DROPPED, ERROR
	Reason      string         `json:"reason,omitempty"` // of a drop or error, or how the flow ended
	Start       time.Time      `json:"start"`
	End         time.Time      `json:"end,omitzero"` // zero while it lives
	Counters
}

// FlowsReply answers GET /v1/flows?network=&link=.
type FlowsReply struct {
	Flows []Flow `json:"flows"`
}

// LinkStats are one link's counts since it was attached.
type LinkStats struct {
	ID    string            `json:"id"`
	Drops map[string]uint64 `json:"drops,omitempty"` // by reason, zero counts left out
	Counters
}

// NetworkStats are one network's counts since the daemon started; they hold
// those of links that are gone.
type NetworkStats struct {
	Network string            `json:"network"`
	Flows   int               `json:"flows"`
	Drops   map[string]uint64 `json:"drops,omitempty"`
	Links   []LinkStats       `json:"links"`
	Counters
}

// StatsReply answers GET /v1/stats?network=.
type StatsReply struct {
	Networks []NetworkStats `json:"networks"`
}

// Problem is one thing that keeps the daemon from serving fully.
type Problem struct {
	Code    Code   `json:"code"` // exhausted, unavailable, …
	Object  string `json:"object,omitempty"`
	Message string `json:"message"`
	Blocks  bool   `json:"blocks,omitempty"` // no attach can succeed (of Object, when that names a network)
}

// StatusReply answers GET /v1/status?network=.
type StatusReply struct {
	Ready     bool      `json:"ready"` // no problem blocks
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	UID       int       `json:"uid"`
	Started   time.Time `json:"started"`
	StateDir  string    `json:"stateDir"`
	Socket    string    `json:"socket"`
	Networks  int       `json:"networks"`
	Links     int       `json:"links"`
	Lost      []string  `json:"lost,omitempty"` // IDs of links in state lost
	OpenFiles int       `json:"openFiles"`
	FileLimit int       `json:"fileLimit"`
	Problems  []Problem `json:"problems,omitempty"`
}

// VersionReply answers GET /v1/version.
type VersionReply struct {
	Version   string `json:"version"`
	API       int    `json:"api"`
	GoVersion string `json:"goVersion"`
	Commit    string `json:"commit,omitempty"`
}

// FlowQuery selects flows; zero selects all.
type FlowQuery struct {
	Network string
	Link    string // any reference that GET /v1/links?ref= understands
}

// CaptureQuery selects what GET /v1/capture streams.
type CaptureQuery struct {
	Link    string // any reference that GET /v1/links?ref= understands; empty: every link of Network
	Network string // empty with an empty Link: every link of every network
	SnapLen int    // bytes kept of each packet; 0: all
}

var _ fmt.Stringer = LinkKey{}
